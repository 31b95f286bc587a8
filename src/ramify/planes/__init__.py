"""Providers, one room per plane. Each imports contracts only: never the kernel, never each other."""
