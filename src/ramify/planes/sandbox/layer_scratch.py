"""What one running file system writes to: the directories of an overlay mount, in a layer store."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layer_index import ImageRecord

_ROOT_MODE = 0o755
_COUNTED = 256


@dataclass(frozen=True, slots=True)
class LayerScratch:
    """Directories for one overlay mount, owned by a live engine until frozen or dropped.

    Attributes:
        home: the engine's directory.
        image: what it stands on.
        record: what the store knew of `image` then (None: it lies outside the store). Its layers
            are kept meanwhile, also where the image is discarded.
        parts: directories below `upper`, each of which is the upper of a mount of its own ("":
            there is one mount, of `upper` itself).
    """

    id: str
    home: Path
    image: SandboxImage | None
    record: ImageRecord | None
    parts: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The directory that holds both, on the file system of the layers."""
        return self.home / self.id

    @property
    def upper(self) -> Path:
        """What the mount changes."""
        return self.path / "upper"

    @property
    def work(self) -> Path:
        """Overlay's own."""
        return self.path / "work"

    @property
    def top(self) -> str | None:
        """The uppermost layer that it stands on, if there is one in the store."""
        return self.record.layers[0] if self.record else None

    @property
    def holder(self) -> str:
        """Names it among those who need its layers."""
        return f"s-{self.home.name}-{self.id}"

    @property
    def lowers(self) -> tuple[str, ...]:
        """The directories that it stands on, below `LayerStore.layers_dir`, top first."""
        return tuple(f"{layer}/diff" for layer in self.record.layers) if self.record else ()

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing was written since it was made, as far as a child could tell."""
        for part in self.parts:
            place = self.upper / part
            before = self.inherited(part)
            mode = stat.S_IMODE(before.st_mode) if before else _ROOT_MODE
            if stat.S_IMODE(place.stat().st_mode) != mode or (part and os.listdir(place)):
                return False
        return set(os.listdir(self.upper)) == {part for part in self.parts if part}

    def inherited(self, part: str) -> os.stat_result | None:
        """What the root directory of a part was in the sandbox that `image` was frozen from."""
        if self.record is None or len(self.record.layers) <= self.record.base_depth:
            return None
        layers = self.home.parent.parent / "layers"
        try:
            return os.lstat(layers / self.record.layers[0] / "diff" / part)
        except FileNotFoundError:
            return None  # its base did not have this part


def make_directories(scratch: LayerScratch, owner: int | None) -> LayerScratch:
    """Make the directories of a scratch; see `LayerStore.new_scratch`."""
    os.mkdir(scratch.path)
    names = ("", *(part for part in scratch.parts if part))
    for place in (scratch.work, scratch.upper):
        for name in names:
            os.mkdir(place / name)
            if owner is not None:
                os.chown(place / name, owner, owner)
    for part in scratch.parts:
        place, before = scratch.upper / part, scratch.inherited(part)
        if before is not None and os.geteuid() == 0:
            os.chown(place, before.st_uid, before.st_gid)
        # Whatever the umask: it is a directory of sandboxes.
        place.chmod(stat.S_IMODE(before.st_mode) if before else _ROOT_MODE)
    return scratch


def measured(place: Path) -> int:
    """The bytes of the files in a tree; -1 where that takes many steps, or cannot be told."""
    total, steps = 0, 0
    queue = [os.fspath(place)]
    try:
        while queue:
            with os.scandir(queue.pop()) as found:
                for entry in found:
                    steps += 1
                    if steps > _COUNTED:
                        return -1
                    if entry.is_dir(follow_symlinks=False):
                        queue.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
    except OSError:  # the agent closed a directory to us, or gave it a name longer than can be said
        return -1
    return total
