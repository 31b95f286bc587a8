"""Sandboxes as Docker containers, over the Engine API."""

from ramify.planes.sandbox.docker.provider import DockerProvider

__all__ = ["DockerProvider"]
