"""Prepared trees that engines share: made once, never half, never changed, bounded in size."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.contracts.errors import InfraError
from ramify.planes.reward.native.shelf import Shelf

KEY = "key"


class Maker:
    """Makes a small tree, and counts how often."""

    def __init__(self, size: int = 10) -> None:
        self.count = 0
        self.good = True
        self._size = size

    async def __call__(self, tree: Path) -> bytes:
        self.count += 1
        assert os.listdir(tree) == []
        (tree / "bin").mkdir()
        (tree / "bin" / "python3").write_bytes(b"x" * self._size)
        (tree / "bin" / "python").symlink_to("python3")
        (tree / "lib").mkdir()
        (tree / "lib" / "data").write_bytes(b"data")
        await asyncio.sleep(0)
        return b"note %d" % self.count

    def still_good(self, note: bytes) -> bool:
        assert note.startswith(b"note ")
        return self.good

    async def use(self, shelf: Shelf, key: str = KEY) -> bytes:
        async with shelf.hold(key, self, self.still_good) as (tree, note):
            assert (tree / "lib" / "data").read_bytes() == b"data"
            assert os.readlink(tree / "bin" / "python") == "python3"
        return note


async def test_made_once_and_readable_by_all(tmp_path):
    shelf, maker = Shelf(tmp_path / "shelf"), Maker()
    assert [await maker.use(shelf) for _ in range(3)] == [b"note 1"] * 3
    assert await maker.use(Shelf(tmp_path / "shelf")) == b"note 1"
    assert maker.count == 1
    tree = tmp_path / "shelf" / KEY / "tree"
    modes = {p.name: p.stat().st_mode & 0o777 for p in tree.rglob("*") if not p.is_symlink()}
    assert modes == {"bin": 0o755, "python3": 0o555, "lib": 0o755, "data": 0o444}
    assert sorted(p.name for p in (tmp_path / "shelf").iterdir()) == [KEY, "locks"]


def _keep_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    time.sleep(0.02)  # the clock of a file system may go in steps of 10 ms
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _same_size(tree: Path) -> None:
    path = tree / "lib" / "data"

    def change() -> None:
        path.chmod(0o644)
        path.write_bytes(b"DATA")
        path.chmod(0o444)

    _keep_times(path, change)


def _exchanged(tree: Path) -> None:
    path = tree / "lib" / "data"
    before = path.stat()
    (tree / "other").write_bytes(b"DATA")
    (tree / "other").chmod(0o444)
    os.utime(tree / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tree / "other").rename(path)


def _linked(tree: Path) -> None:
    (tree / "bin" / "python").unlink()
    (tree / "bin" / "python").symlink_to("/bin/sh")


TAMPERING: dict[str, Callable[[Path], object]] = {
    "other content, the same size and time": _same_size,
    "another file renamed to its place": _exchanged,
    "a file planted": lambda tree: (tree / "lib" / "more").write_bytes(b""),
    "a file removed": lambda tree: (tree / "lib" / "data").unlink(),
    "a link led elsewhere": _linked,
    "a mode changed": lambda tree: (tree / "lib" / "data").chmod(0o666),
    "a directory opened": lambda tree: (tree / "lib").chmod(0o777),
    "the seals gone": lambda tree: (tree.parent / "seals.json").unlink(),
    "the seals cut": lambda tree: os.truncate(tree.parent / "seals.json", 20),
    "the seals empty": lambda tree: (tree.parent / "seals.json").write_bytes(b"{}"),
}


@pytest.mark.parametrize("how", list(TAMPERING))
async def test_a_tree_that_was_changed_is_made_anew(tmp_path, how):
    shelf, maker = Shelf(tmp_path), Maker()
    await maker.use(shelf)
    TAMPERING[how](tmp_path / KEY / "tree")
    assert await maker.use(shelf) == b"note 2"
    assert await maker.use(shelf) == b"note 2"


async def test_a_tree_whose_origin_changed_is_made_anew(tmp_path):
    shelf, maker = Shelf(tmp_path), Maker()
    await maker.use(shelf)
    maker.good = False
    assert await maker.use(shelf) == b"note 2"
    maker.good = True
    assert await maker.use(shelf) == b"note 2"


async def test_many_at_once_share_one(tmp_path):
    maker = Maker()
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(maker.use(Shelf(tmp_path)))
    assert maker.count == 1


HALF = """
import asyncio, sys
from pathlib import Path
from ramify.planes.reward.native.shelf import Shelf

async def make(tree):
    (tree / "half").write_bytes(b"half")
    print("making", flush=True)
    await asyncio.sleep(1000)

async def main():
    async with Shelf(Path(sys.argv[1])).hold("key", make, lambda note: True):
        pass

asyncio.run(main())
"""


async def test_what_a_killed_engine_left_half_made(tmp_path):
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HALF, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    maker = Maker()
    try:
        assert engine.stdout is not None
        assert await engine.stdout.readline() == b"making\n"
        with pytest.raises(InfraError, match="another engine has been preparing"):
            await maker.use(Shelf(tmp_path, wait_sec=0.1))
        assert maker.count == 0
    finally:
        engine.kill()
        await engine.wait()
    assert (tmp_path / "key.new" / "tree" / "half").exists()
    assert await maker.use(Shelf(tmp_path)) == b"note 1"
    assert not (tmp_path / "key.new").exists()


async def test_what_a_dead_engine_left_of_another_key(tmp_path):
    (tmp_path / "other.new" / "tree").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    await Maker().use(Shelf(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [KEY, "locks"]


@pytest.mark.parametrize("error", [OSError("no room"), asyncio.CancelledError()])
async def test_a_failure_leaves_nothing(tmp_path, error):
    async def fail(tree: Path) -> bytes:
        (tree / "half").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        async with Shelf(tmp_path).hold(KEY, fail, lambda note: True):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["locks"]
    assert await Maker().use(Shelf(tmp_path)) == b"note 1"


async def test_the_size_is_bounded(tmp_path):
    shelf, maker = Shelf(tmp_path, most_bytes=350), Maker(size=100)
    for number in range(3):
        await maker.use(shelf, f"k{number}")
        os.utime(tmp_path / f"k{number}" / "seals.json", (number, number))
    await maker.use(shelf, "k0")  # now it is k1 that was of no use for longest
    async with shelf.hold("k1", maker, maker.still_good):
        os.utime(tmp_path / "k1" / "seals.json", (1, 1))
        await maker.use(shelf, "k3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k0", "k1", "k3", "locks"]


async def test_a_directory_that_others_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(InfraError, match="others may write to"):
        await Maker().use(Shelf(tmp_path))
