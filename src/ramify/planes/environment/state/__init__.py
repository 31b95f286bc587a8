"""Parts of a world's state: each is snapshot, put back, compared and digested by its driver."""
