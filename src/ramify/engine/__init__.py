"""Running many: executor, limits, retries, pool, job and store. Imports contracts and kernel."""
