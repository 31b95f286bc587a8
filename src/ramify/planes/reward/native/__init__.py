"""Our own runner of Python tests: what is tested has no hand in how it is graded."""
