"""What others recorded, as ours."""
