"""What a user composes: a taskset, an agent, a sandbox and a reward, run together."""
