"""What a new sandbox of the `local` provider stands on: its layers and directories. Blocking."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import NamedTuple

from ramify.contracts.errors import SandboxStartError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layer_scratch import LayerScratch
from ramify.planes.sandbox.layers import LayerStore
from ramify.planes.sandbox.local.hostroot import HostBase, Part, found_base, host_base
from ramify.planes.sandbox.local.namespaces import FIRST_ID

_HOST_PREFIX = "host-"


class Masks(NamedTuple):
    """Where bases on the host's root are kept, and what they hide besides the usual."""

    place: Path
    private: tuple[Path, ...]


class Ground(NamedTuple):
    """Everything on disk that one sandbox needs before it is built.

    `layers` holds, per overlay of the root, its lower directories (topmost first) and whether
    their owners are shifted already. `root` is the mount point.
    """

    name: str
    root: str
    image: SandboxImage
    base: HostBase | None
    scratch: LayerScratch
    layers: list[tuple[Part, list[tuple[str, bool]]]]


def host_image(masks: Masks) -> SandboxImage:
    """The host's root as it is now, as a pristine image. Raises OSError."""
    base = host_base(masks.place, masks.private, os.geteuid() == 0)
    return SandboxImage(_HOST_PREFIX + base.digest[:16], "local", f"sha256:{base.digest}")


def break_ground(
    store: LayerStore, masks: Masks, image: SandboxImage | None, engine: Path, shift: bool
) -> Ground:
    """Make the directories of a new sandbox on `image` (None: the host's root).

    Args:
        store: the images.
        masks: the bases on the host's root.
        image: what it starts from.
        engine: the directory of this engine.
        shift: whether root inside is another user here (FIRST_ID).

    Raises: OSError, StoreError, SandboxStartError (its base is gone).
    """
    chosen = image or host_image(masks)
    base = _base_of(store, chosen, masks)
    parts = tuple(part.inside for part in base.parts) if base else ("",)
    scratch = store.new_scratch(chosen, parts=parts, owner=FIRST_ID if shift else None)
    name = uuid.uuid4().hex[:12]
    root = engine / name / "root"
    try:
        layers = _layers(store, scratch, base)
        root.mkdir(parents=True)
    except OSError:
        store.drop(scratch)
        raise
    return Ground(name, str(root), chosen, base, scratch, layers)


def _base_of(store: LayerStore, image: SandboxImage, masks: Masks) -> HostBase | None:
    """The host base below an image, or None for one with a root of its own."""
    below = store.base(image)
    if below is None:
        return None
    if not below.startswith(_HOST_PREFIX):
        raise SandboxStartError(f"the image {below} is gone from {store.root}; prepare it again")
    try:
        return found_base(masks.place / below.removeprefix(_HOST_PREFIX))
    except FileNotFoundError as error:
        message = f"the base {below} of the image {image.id} is gone from {masks.place}"
        raise SandboxStartError(message) from error


def _layers(
    store: LayerStore, scratch: LayerScratch, base: HostBase | None
) -> list[tuple[Part, list[tuple[str, bool]]]]:
    own = [str(store.layers_dir / name) for name in scratch.lowers]
    found: list[tuple[Part, list[tuple[str, bool]]]] = []
    for part in base.parts if base else (Part("", ()),):
        layers: list[tuple[str, bool]] = []
        for lower in (*(os.path.join(layer, part.inside) for layer in own), *part.below):
            try:
                layers.append((lower.rstrip("/"), os.stat(lower).st_uid >= FIRST_ID))
            except FileNotFoundError:
                continue  # an image frozen before its base had this part
        found.append((part, layers))
    return found
