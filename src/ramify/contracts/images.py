"""The store of images that sandboxes start from, as a person manages it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec


class StoredImage(msgspec.Struct, frozen=True):
    """An image of the store.

    `size_bytes` counts all its layers, those that it shares with other images too. `owners_lost`
    counts files whose owner no sandbox here can have: they belong to root or `nobody` instead.
    """

    names: tuple[str, ...]
    id: str
    size_bytes: int
    layers: int
    owners_lost: int = 0


class ImageStore(Protocol):
    """Images by name. Every method blocks."""

    def images(self) -> list[StoredImage]:
        """The images that have names, by name."""
        ...

    def take(self, file: Path, name: str | None) -> StoredImage:
        """Import an image: an OCI layout (directory or tar), the output of `docker save` or
        `docker export`, or a root file system (directory or tar).

        It gets `name`, and the names that the archive gives it.

        Raises: ConfigError (no image, malformed, no name at all), UnsupportedError (zstd).
        """
        ...

    def remove(self, name: str) -> bool:
        """Remove a name, and its image when that was its last; whether there was such a name.

        Raises: ConfigError (bad name).
        """
        ...

    def close(self) -> None:
        """Release the store. Idempotent."""
        ...
