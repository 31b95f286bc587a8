"""What a layer store holds by name, and taking names back."""

from __future__ import annotations

from pathlib import Path

from ramify.contracts.images import StoredImage
from ramify.planes.sandbox.layer_index import (
    MARK,
    exclusive,
    full_name,
    read_image,
    read_tags,
    write_json,
)


def named_images(root: Path) -> list[StoredImage]:
    """The images of the store at `root` that have names, by name."""
    named: dict[str, list[str]] = {}
    for name, image_id in sorted(read_tags(root).items()):
        if not name.startswith(MARK):
            named.setdefault(image_id, []).append(name)
    found: list[StoredImage] = []
    for image_id, names in named.items():
        record = read_image(root, image_id)
        if record is not None:
            size, layers = record.size_bytes, len(record.layers)
            found.append(StoredImage(tuple(names), image_id, size, layers, record.owners_lost))
    return found


def untag(root: Path, name: str) -> bool:
    """Let a name mean nothing; whether it meant something.

    An image without a name goes when no live engine uses it (`LayerStore.sweep`).
    Raises: ConfigError (bad name).
    """
    wanted = full_name(name)
    with exclusive(root):
        tags = read_tags(root)
        if tags.pop(wanted, None) is None:
            return False
        write_json(root / "tags.json", tags, sync=True)
    return True


def is_marked(root: Path, image_id: str) -> bool:
    """Whether an image came from a Docker daemon."""
    return any(it == image_id for name, it in read_tags(root).items() if name.startswith(MARK))
