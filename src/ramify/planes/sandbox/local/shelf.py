"""The image store of the `local` sandbox, as a person manages it."""

from __future__ import annotations

from pathlib import Path

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError
from ramify.contracts.images import StoredImage
from ramify.planes.sandbox.layer_index import full_name
from ramify.planes.sandbox.layer_names import named_images, untag
from ramify.planes.sandbox.layers import LayerStore


class LocalImageStore:
    """The images that `local` sandboxes start from (the `ImageStore` contract).

    `home` is that of the provider (default: the same). Raises: StoreError (it cannot be used).
    """

    def __init__(self, home: Path | None = None) -> None:
        self._store = LayerStore((home or ramify_home() / "sandbox") / "store")

    def images(self) -> list[StoredImage]:
        """The images that have names, by name."""
        return named_images(self._store.root)

    def take(self, file: Path, name: str | None) -> StoredImage:
        """Import an image from a file or directory; see the contract."""
        if not file.exists():
            raise ConfigError(f"no such file: {file}")
        if name is not None:
            full_name(name)  # before all the work
        take = self._store.import_tree if file.is_dir() else self._store.import_tar
        image = take(file, name=name)
        for stored in self.images():
            if stored.id == image.id:
                return stored
        raise ConfigError(f"{file} gives its image no name: give one with --name")

    def remove(self, name: str) -> bool:
        """Remove a name, and its image when that was its last; see the contract."""
        known = untag(self._store.root, name)
        self._store.sweep()
        return known

    def close(self) -> None:
        """Release the store. Idempotent."""
        self._store.close()
