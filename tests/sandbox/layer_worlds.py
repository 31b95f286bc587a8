"""What the tests of layer stores share: real overlay mounts, and a model of files."""

from __future__ import annotations

import copy
import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layer_scratch import LayerScratch
from ramify.planes.sandbox.layers import LayerStore
from ramify.planes.sandbox.local.namespaces import mount_overlay, unmount


@dataclass
class File:
    """An inode: names that share one are hard links."""

    kind: str
    data: bytes
    mode: int = 0o644
    note: bytes = b""


@dataclass
class Model:
    """What a file system should hold: paths of files and of directories, with their modes."""

    files: dict[str, File] = field(default_factory=dict[str, File])
    dirs: dict[str, int] = field(default_factory=lambda: {"": 0o755})

    def copy(self) -> Model:
        """Another one, in which the same names share inodes."""
        return copy.deepcopy(self)

    def shown(self) -> dict[str, object]:
        """As `shown` gives it of a mount."""
        groups: dict[int, list[str]] = {}
        for path, file in sorted(self.files.items()):
            groups.setdefault(id(file), []).append(path)
        files = {
            path: (file.kind, file.data, file.mode, file.note, tuple(groups[id(file)]))
            for path, file in self.files.items()
        }
        return {**files, **{path: ("dir", mode) for path, mode in self.dirs.items()}}

    def under(self, path: str) -> list[str]:
        """Names in and below a directory."""
        return [name for name in (*self.files, *self.dirs) if name.startswith(path + "/")]

    def forget(self, path: str) -> None:
        """Remove whatever is at a path."""
        for name in [path, *self.under(path)]:
            self.files.pop(name, None)
            self.dirs.pop(name, None)


def shown(root: Path) -> dict[str, object]:
    """Everything that programs see below a directory."""
    found: dict[str, object] = {"": ("dir", stat.S_IMODE(root.stat().st_mode))}
    inodes: dict[str, tuple[int, str, bytes, int, bytes]] = {}
    queue = [""]
    while queue:
        at = queue.pop()
        for name in os.listdir(root / at):
            path = f"{at}/{name}" if at else name
            info = (root / path).lstat()
            mode = stat.S_IMODE(info.st_mode)
            if stat.S_ISDIR(info.st_mode):
                found[path] = ("dir", mode)
                queue.append(path)
            else:
                inodes[path] = (info.st_ino, *_content(root / path, info))
    groups: dict[int, list[str]] = {}
    for path, (inode, *_rest) in sorted(inodes.items()):
        groups.setdefault(inode, []).append(path)
    for path, (inode, kind, data, mode, note) in inodes.items():
        found[path] = (kind, data, mode, note, tuple(groups[inode]))
    return found


def _content(path: Path, info: os.stat_result) -> tuple[str, bytes, int, bytes]:
    mode = stat.S_IMODE(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        return "link", os.fsencode(os.readlink(path)), 0o777, b""
    if stat.S_ISFIFO(info.st_mode):
        return "fifo", b"", mode, b""
    assert stat.S_ISREG(info.st_mode), f"{path} shows as {info.st_mode:o}"
    note = os.getxattr(path, "user.note") if "user.note" in os.listxattr(path) else b""
    return "file", path.read_bytes(), mode, note


class Mounted:
    """A scratch of a store with its overlay mounted, and what it should hold."""

    def __init__(
        self, store: LayerStore, image: SandboxImage | None, model: Model, at: Path
    ) -> None:
        self.store, self.model, self.at = store, model.copy(), at
        self.scratch: LayerScratch = store.new_scratch(image)
        lowers = [str(store.layers_dir / lower) for lower in self.scratch.lowers]
        at.mkdir(exist_ok=True)
        empty = at.parent / "empty"
        empty.mkdir(exist_ok=True)
        upper, work = str(self.scratch.upper), str(self.scratch.work)
        mount_overlay(str(at), lowers or [str(empty)], upper, work, ["volatile"], 0)

    def check(self) -> None:
        """Raises AssertionError where it shows anything else than it should."""
        seen, expected = shown(self.at), self.model.shown()
        wrong = {
            path: (seen.get(path), expected.get(path))
            for path in {*seen, *expected}
            if seen.get(path) != expected.get(path)
        }
        assert not wrong, f"seen, expected: {wrong}"

    def freeze(self) -> SandboxImage:
        """Unmount and freeze."""
        self.unmount()
        return self.store.freeze(self.scratch)

    def drop(self) -> None:
        """Unmount and forget."""
        self.unmount()
        self.store.drop(self.scratch)

    def unmount(self) -> None:
        """Detach the overlay."""
        unmount(str(self.at))

    def change(self, rng: random.Random) -> None:
        """Do something at random, both in the mount and in the model."""
        places = [path for path in self.model.dirs if path.count("/") < 2]
        parent = rng.choice(places)
        path = f"{parent}/{rng.choice('abcd')}".lstrip("/")
        rng.choice(_CHANGES)(self, rng, path)


def _clear(mounted: Mounted, path: str) -> None:
    place = mounted.at / path
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    mounted.model.forget(path)


def _write(mounted: Mounted, rng: random.Random, path: str) -> None:
    _clear(mounted, path)
    file = File("file", b"%d" % rng.randrange(1 << 30))
    (mounted.at / path).write_bytes(file.data)
    mounted.model.files[path] = file


def _amend(mounted: Mounted, rng: random.Random, path: str) -> None:
    """In place, which copies it up; a link to what lies in a lower layer would be cut by that."""
    file = mounted.model.files.get(path)
    if file is None or file.kind != "file" or _links(mounted, file) > 1:
        return
    place = mounted.at / path
    file.data += b"+"
    with place.open("ab") as opened:
        opened.write(b"+")
    file.mode, file.note = rng.choice((0o644, 0o600, 0o4755)), b"%d" % rng.randrange(99)
    os.setxattr(place, "user.note", file.note)
    place.chmod(file.mode)


def _directory(mounted: Mounted, rng: random.Random, path: str) -> None:
    """A new one, which is opaque where something was."""
    _clear(mounted, path)
    mode = rng.choice((0o755, 0o700))
    (mounted.at / path).mkdir()
    (mounted.at / path).chmod(mode)
    mounted.model.dirs[path] = mode


def _remove(mounted: Mounted, _rng: random.Random, path: str) -> None:
    _clear(mounted, path)


def _link(mounted: Mounted, _rng: random.Random, path: str) -> None:
    singles = [
        name
        for name, file in sorted(mounted.model.files.items())
        if file.kind == "file" and name != path and _links(mounted, file) == 1
    ]
    singles = [name for name in singles if not name.startswith(path + "/")]
    if not singles:
        return
    _clear(mounted, path)
    os.link(mounted.at / singles[0], mounted.at / path)
    mounted.model.files[path] = mounted.model.files[singles[0]]


def _special(mounted: Mounted, rng: random.Random, path: str) -> None:
    _clear(mounted, path)
    if rng.random() < 0.5:
        (mounted.at / path).symlink_to("a/b")
        mounted.model.files[path] = File("link", b"a/b", 0o777)
    else:
        os.mkfifo(mounted.at / path)
        (mounted.at / path).chmod(0o640)
        mounted.model.files[path] = File("fifo", b"", 0o640)


def _root(mounted: Mounted, rng: random.Random, _path: str) -> None:
    mounted.model.dirs[""] = rng.choice((0o755, 0o711, 0o1777))
    mounted.at.chmod(mounted.model.dirs[""])


def _links(mounted: Mounted, file: File) -> int:
    return sum(other is file for other in mounted.model.files.values())


_CHANGES = (_write, _write, _write, _amend, _amend, _directory, _directory, _remove, _remove,
            _link, _special, _root)  # fmt: skip
