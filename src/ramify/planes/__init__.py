"""Providers, one room per plane. Each imports contracts only, and no other plane."""
