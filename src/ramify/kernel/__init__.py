"""The rollout itself: a tree, the lifecycle that grows it, and views derived from it.

Imports contracts only. Concrete providers reach it as Protocols.
"""
