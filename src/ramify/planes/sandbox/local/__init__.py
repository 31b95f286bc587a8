"""The `local` sandbox: our own namespaces, overlays and supervisors; nothing from the image."""

from ramify.planes.sandbox.local.provider import LocalProvider

__all__ = ["LocalProvider"]
