"""Sandboxes as Docker containers: `provider.DockerProvider`."""
