"""What test runners leave, read on our side: bytes in, a `SuiteReport` out."""
