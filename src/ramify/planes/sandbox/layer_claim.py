"""Adding layers to a store, kept from being collected until an image refers to them."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ramify.planes.sandbox.digests import digest_layer
from ramify.planes.sandbox.layer_index import (
    LayerRecord,
    add_ref,
    drop_ref,
    exclusive,
    new_id,
    read_layer,
    remove_path,
    sync_directory,
    write_json,
)
from ramify.planes.sandbox.layer_unpack import unpack_layer

_LIBC = ctypes.CDLL(None, use_errno=True)


def chain_digest(below: str, own: str | bytes) -> str:
    """The digest of something that stands on something else."""
    raw = own.encode() if isinstance(own, str) else own
    return hashlib.blake2b(below.encode() + b"\0" + raw, digest_size=32).hexdigest()


@contextmanager
def trash_in(home: Path) -> Generator[Path]:
    """A directory whose content is removed at the end, when no lock is held any more."""
    path = home / f"trash-{new_id()}"
    path.mkdir()
    try:
        yield path
    finally:
        remove_path(path)


class Claim:
    """A stack of layers being added, the lowest first; a context manager.

    Layers are named by their content and what lies below them, so that content that is there
    already is found again. They are on disk, durably, when a method returns.

    Args:
        root: the store. home: the directory of its engine. engine: id of that engine.
    """

    def __init__(self, root: Path, home: Path, engine: str) -> None:
        self._root, self._home = root, home
        self._holder = f"s-{engine}-{new_id()}"
        self._claimed: list[str] = []
        self.layers: list[str] = []
        self.digest = ""
        self.size_bytes = 0
        self.owners_lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with trash_in(self._home) as trash, exclusive(self._root):
            for layer in reversed(self._claimed):
                drop_ref(self._root, layer, self._holder, trash)

    @property
    def top(self) -> Path:
        """The directory of the layer added last."""
        return self._root / "layers" / self.layers[-1]

    def hold(self, layer: str) -> bool:
        """Add a layer of the store that stands on those added before; False if it is gone."""
        with exclusive(self._root):
            record = read_layer(self._root, layer)
            if record is None:
                return False
            add_ref(self._root, layer, self._holder)
        self._claimed.append(layer)
        self.layers.append(layer)
        self.digest = record.digest
        self.size_bytes += record.size_bytes
        return True

    def unpack(self, source: IO[bytes], *, whiteouts: bool) -> None:
        """Add a layer from a tar stream; see `unpack_layer`."""

        def write(diff: Path) -> None:
            self.owners_lost += unpack_layer(source, diff, whiteouts=whiteouts)

        self.fill(write)

    def fill(self, write: Callable[[Path], None]) -> None:
        """Add the layer that `write` puts into an empty directory."""
        work = self.new_work()
        try:
            write(work / "diff")
            self.adopt(work)
        finally:
            if work.exists():
                remove_path(work)

    def new_work(self) -> Path:
        """A directory for a layer in the making: its files belong below `diff` in it."""
        work = self._home / new_id()
        (work / "refs").mkdir(parents=True)
        diff = work / "diff"
        diff.mkdir()
        diff.chmod(0o755)  # whatever the umask: it is the root directory of sandboxes
        return work

    def adopt(self, work: Path) -> None:
        """Add what was put into a directory from `new_work`, which goes unless it was there."""
        own, size = digest_layer(work / "diff")
        chain = chain_digest(self.digest, own)
        below = self.layers[-1] if self.layers else None
        self.digest = chain
        write_json(work / "meta.json", LayerRecord(below, self.digest, size), sync=True)
        _sync_file_system(work)
        self._add(work, chain[:12], below)
        self.size_bytes += size

    def _add(self, work: Path, layer: str, below: str | None) -> None:
        target = self._root / "layers" / layer
        with exclusive(self._root):
            if not target.exists():
                if below:
                    add_ref(self._root, below, f"l-{layer}")
                os.rename(work, target)
                sync_directory(target.parent)
            add_ref(self._root, layer, self._holder)
        self._claimed.append(layer)
        self.layers.append(layer)


def _sync_file_system(path: Path) -> None:
    """Make everything written so far durable: far cheaper than a sync of each file."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBC.syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), f"syncfs: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)
