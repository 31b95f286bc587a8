"""The files of a layer store: records of images, tags, references to layers, locks.

```
lock                        held while any of this changes
layers/<id>/diff/           the files of a layer; never changed once it is there
layers/<id>/meta.json       LayerRecord
layers/<id>/refs/<holder>   one empty file per holder: l-<layer above>, i-<image>, s-<scratch>
images/<id>.json            ImageRecord
tags.json                   name -> image id
engines/<id>/lock           held by a live engine
engines/<id>/<scratch>/     what the engine is making or running on
engines/<id>/pin-<image>    the engine may still start sandboxes on an image
```

A reference is made before its holder and removed after it, so a crash can leave one too many,
never one too few; `sweep` removes those.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import ConfigError, StoreError
from ramify.contracts.sandbox import Healthcheck, SandboxImage
from ramify.planes.sandbox.descent import remove

PROVIDER = "local"
MARK = "ramify/docker:"
"""Begins names that tell which image of a Docker daemon an image is; they keep nothing alive."""

_NAME = re.compile(r"[a-z0-9]+(?:[._/-][a-z0-9]+|__[a-z0-9]+)*")
_PINNED = re.compile(r"([^@]+)@(sha256:[0-9a-f]{64})")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class LayerRecord(msgspec.Struct, frozen=True):
    """`below` is the next lower layer.

    `digest` covers this layer and all below it: by content where it was imported, and by name
    where it was frozen, as the image's does.
    """

    below: str | None
    digest: str
    size_bytes: int


_layers = msgspec.json.Decoder(LayerRecord)


class ImageRecord(msgspec.Struct, frozen=True):
    """An image of the store; `layers` from the top down.

    `base` is the id of an image outside the store (the host's root) that lies below the lowest
    layer; `base_depth` counts the layers that come from a pristine image and are never merged.
    `boot` names the boot of the machine that an unsynced image belongs to: after another one its
    files cannot be trusted. `engine` made a frozen image and is the only one to know it.
    `owners_lost` counts files of owners that sandboxes here cannot have. `content` is the digest
    of its content, once somebody asked.
    """

    id: str
    layers: tuple[str, ...]
    digest: str
    size_bytes: int
    parent: str | None = None
    pristine: bool = True
    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    owners_lost: int = 0
    base: str | None = None
    base_depth: int = 0
    engine: str | None = None
    boot: str | None = None
    content: str | None = None

    def as_image(self) -> SandboxImage:
        """As the contract has it."""
        return SandboxImage(
            id=self.id,
            provider=PROVIDER,
            digest=self.digest,
            parent=self.parent,
            size_bytes=self.size_bytes,
            user=self.user,
            workdir=self.workdir,
            env=self.env,
            pristine=self.pristine,
            entrypoint=self.entrypoint,
            cmd=self.command,
            healthcheck=self.healthcheck,
        )


_images = msgspec.json.Decoder(ImageRecord)


def full_name(name: str) -> str:
    """`debian` is `debian:latest`, as for docker; a name with a digest keeps it.

    Raises: ConfigError.
    """
    pinned = _PINNED.fullmatch(name)
    if pinned:
        return f"{full_name(pinned[1]).rpartition(':')[0]}@{pinned[2]}"
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        repository, tag = name, "latest"
    for prefix in ("docker.io/", "library/"):
        repository = repository.removeprefix(prefix)
    host, _, rest = repository.partition("/")
    path = rest if rest and (":" in host or "." in host) else repository
    if not _NAME.fullmatch(path) or not _TAG.fullmatch(tag):
        raise ConfigError(f"{name!r} is not an image name; write one like debian:bookworm")
    return f"{repository}:{tag}"


def boot_id() -> str:
    """Names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_id() -> str:
    """A short random id: overlay's mount options have little room."""
    return os.urandom(6).hex()


def write_json(path: Path, value: Any, *, sync: bool) -> None:
    """Replace a file by the JSON of a record, at once; durably with `sync`."""
    temporary = path.with_name(f".{path.name}.{new_id()}")
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(value))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, path)
    if sync:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_path(path: Path) -> None:
    """Remove whatever stands at a path, to any depth, following nothing."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove(fd, os.fsencode(path.name))
    finally:
        os.close(fd)


def read_tags(root: Path) -> dict[str, str]:
    """Image ids by full name."""
    try:
        raw = (root / "tags.json").read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return msgspec.json.decode(raw, type=dict[str, str])
    except msgspec.DecodeError as error:
        raise StoreError(f"{root / 'tags.json'}: {error}; remove it and tag again") from None


def read_image(root: Path, image_id: str) -> ImageRecord | None:
    """The record of an image; None if there is none that can be read."""
    try:
        raw = (root / "images" / f"{image_id}.json").read_bytes()
        return _images.decode(raw)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_layer(root: Path, layer_id: str) -> LayerRecord | None:
    """The record of a layer; None if there is none that can be read."""
    try:
        raw = (root / "layers" / layer_id / "meta.json").read_bytes()
        return _layers.decode(raw)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


@contextmanager
def exclusive(root: Path) -> Generator[None]:
    """Hold the store's lock, against other threads and other engines. Held for moments only."""
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def add_ref(root: Path, layer_id: str, holder: str) -> None:
    """Note that `holder` needs a layer. Call with the store's lock held."""
    (root / "layers" / layer_id / "refs" / holder).touch()


def drop_ref(root: Path, layer_id: str, holder: str, trash: Path) -> None:
    """Take a note back; layers that nobody needs any more go to `trash`, from the top down.

    Call with the store's lock held. Removing what is in `trash` is left to the caller.
    """
    above = holder
    at: str | None = layer_id
    while at is not None:
        path = root / "layers" / at
        (path / "refs" / above).unlink(missing_ok=True)
        if not path.exists() or any((path / "refs").iterdir()):
            return
        record = read_layer(root, at)
        os.rename(path, trash / f"layer-{new_id()}")
        above, at = f"l-{at}", record.below if record else None
