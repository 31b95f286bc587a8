"""Grades the tasks of this world. Never in the agent's sandbox while the agent is."""
