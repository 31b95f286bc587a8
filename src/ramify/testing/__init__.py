"""For tests of what is built on Ramify: fakes, a simulated loop, conformance suites.

Imports contracts only, and no test framework.
"""
