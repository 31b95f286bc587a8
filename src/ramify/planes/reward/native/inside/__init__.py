"""Programs that run in the verifier's sandbox, each alone: standard library only, Python 3.8."""
