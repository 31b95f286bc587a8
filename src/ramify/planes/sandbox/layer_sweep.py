"""Removing what dead engines and crashes left in a layer store."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ramify.planes.sandbox.layer_index import (
    MARK,
    ImageRecord,
    boot_id,
    drop_ref,
    exclusive,
    new_id,
    read_image,
    read_layer,
    read_tags,
    remove_path,
    write_json,
)


def hold_lock(path: Path) -> int:
    """Create an engine's lock file and hold it; closing the descriptor (or dying) lets go."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def sweep_store(root: Path) -> int:
    """Remove the scratch directories and untagged frozen images of dead engines, pristine images
    that neither a name nor a live engine keeps, images and layers that are incomplete, and layers
    that nobody needs. Returns the number of things removed.
    """
    home = root / "engines" / f"sweep-{new_id()}"  # so that a sweep that dies is swept as well
    trash = home / "trash"
    with exclusive(root):
        trash.mkdir(parents=True)
        lock = hold_lock(home / "lock")
    try:
        with exclusive(root):
            dead = [path for path in (root / "engines").iterdir() if not _alive(path)]
            removed = sum(_move_engine(path, trash) for path in dead)
            removed += _drop_images(root, {path.name for path in dead}, trash)
            removed += _drop_layers(root, trash)
        remove_path(trash)
        return removed
    finally:
        with exclusive(root):
            if not trash.exists():
                (home / "lock").unlink()
                home.rmdir()
            os.close(lock)


def _alive(engine: Path) -> bool:
    try:
        fd = os.open(engine / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # made under the store's lock, which is held now: it died in between
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _move_engine(engine: Path, trash: Path) -> int:
    held = sum(path.is_dir() and path.name != "trash" for path in engine.iterdir())
    os.rename(engine, trash / engine.name)
    return held


def _drop_images(root: Path, dead: set[str], trash: Path) -> int:
    tags = read_tags(root)
    kept = {image for name, image in tags.items() if not name.startswith(MARK)}
    pinned = {path.name.removeprefix("pin-") for path in (root / "engines").glob("*/pin-*")}
    boot = boot_id()
    gone: set[str] = set()
    for path in (root / "images").iterdir():
        record = None if path.name.startswith(".") else read_image(root, path.stem)
        if record is not None and not _is_lost(root, record, dead, kept, pinned, boot):
            continue
        path.unlink()
        gone.add(path.stem)
        if record is not None:
            drop_ref(root, record.layers[0], f"i-{record.id}", trash)
    left = {name: image for name, image in tags.items() if image not in gone}
    if len(left) < len(tags):
        write_json(root / "tags.json", left, sync=True)
    return len(gone)


def _is_lost(
    root: Path, record: ImageRecord, dead: set[str], kept: set[str], pinned: set[str], boot: str
) -> bool:
    spoilt = record.boot is not None and record.boot != boot
    unused = record.pristine and record.id not in pinned
    nameless = (unused or record.engine in dead) and record.id not in kept
    return spoilt or nameless or any(read_layer(root, layer) is None for layer in record.layers)


def _drop_layers(root: Path, trash: Path) -> int:
    """Take back references whose holder is gone, again until every layer left has a holder."""
    layers = root / "layers"
    before = len(os.listdir(layers))
    engines = set(os.listdir(root / "engines"))
    for path in list(layers.iterdir()):
        for holder in list((path / "refs").iterdir()) if path.exists() else ():
            if not _exists(root, holder.name, engines):
                drop_ref(root, path.name, holder.name, trash)
    for path in list(layers.iterdir()):
        if path.exists() and not os.listdir(path / "refs"):
            drop_ref(root, path.name, "none", trash)
    return before - len(os.listdir(layers))


def _exists(root: Path, holder: str, engines: set[str]) -> bool:
    kind, _, name = holder.partition("-")
    if kind == "l":
        return (root / "layers" / name).exists()
    if kind == "i":
        return (root / "images" / f"{name}.json").exists()
    return name.partition("-")[0] in engines
