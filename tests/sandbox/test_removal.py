"""Removing a tree that somebody else is removing, or filling, at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ramify.planes.sandbox import descent


def tree(root: Path, depth: int) -> None:
    root.mkdir()
    for number in range(4):
        (root / f"file{number}").write_text("x")
        if depth:
            tree(root / f"dir{number}", depth - 1)


@pytest.mark.parametrize("removers", [2, 4])
def test_two_may_remove_a_tree_at_once(tmp_path: Path, removers: int) -> None:
    for round in range(10):
        tree(tmp_path / f"t{round}", 3)
        start = threading.Barrier(removers)
        failed: list[BaseException] = []

        def remove(name: bytes, start: threading.Barrier, failed: list[BaseException]) -> None:
            fd = os.open(tmp_path, os.O_RDONLY)
            try:
                start.wait()
                descent.remove(fd, name)
            except BaseException as error:
                failed.append(error)
            finally:
                os.close(fd)

        threads = [
            threading.Thread(target=remove, args=(b"t%d" % round, start, failed))
            for _ in range(removers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert not (tmp_path / f"t{round}").exists()


def test_a_tree_that_is_filled_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    kept = os.rmdir

    def fill(path: bytes, *, dir_fd: int) -> None:
        (tmp_path / "t" / "again").touch()
        kept(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", fill)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="not empty"):
            descent.remove(fd, b"t")
    finally:
        os.close(fd)
