"""The `local` sandbox: our own namespaces, overlays and supervisors; nothing from the image.

`bare` has the same supervisors without any isolation.
"""

from ramify.planes.sandbox.local.bare import BareProvider
from ramify.planes.sandbox.local.provider import LocalProvider

__all__ = ["BareProvider", "LocalProvider"]
