"""The sandboxed build-and-test verifier: steps of `agent.yaml`, run where they can harm nothing."""
