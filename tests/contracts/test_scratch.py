"""Scratch directories: gone at the end; after a kill -9 of their maker, gone with the next one."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramify.contracts.errors import StoreError
from ramify.contracts.scratch import Scratch, sweep_scratch

_HOLDER = """
import os, sys, time
from ramify.contracts.scratch import Scratch
with Scratch() as place:
    (place / "secret").write_text("x" * 1000)
    child = os.fork() if "fork" in sys.argv else -1
    if child != 0:
        print(child, place, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own."""
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def names(place: Path) -> list[str]:
    return sorted(os.listdir(place))


@contextmanager
def holder(*how: str) -> Generator[tuple[subprocess.Popen[str], int, Path]]:
    """Another process that has a scratch directory, and perhaps a child forked meanwhile."""
    command = [sys.executable, "-W", "ignore", "-c", _HOLDER, *how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            child, place = process.stdout.readline().split()
            yield process, int(child), Path(place)
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def dead_one() -> Path:
    """A directory whose maker was killed."""
    with holder() as (process, _, place):
        kill(process)
    assert (place / "secret").exists()
    return place


def test_it_is_ours_alone_and_gone_at_the_end(home: Path) -> None:
    with Scratch() as place:
        assert place.parent == home / "tmp"
        for each in (place, place.parent):
            assert stat.S_IMODE(each.stat().st_mode) == 0o700
        assert names(place) == []
        (place / "file").write_text("x")
    assert names(home / "tmp") == []


async def test_the_async_one_too(home: Path) -> None:
    async def fail() -> None:
        async with Scratch() as place:
            (place / "file").write_text("x")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        await fail()
    assert names(home / "tmp") == []


async def test_cancelled_while_it_is_being_made_it_is_gone(home: Path) -> None:
    async def use() -> None:
        async with Scratch():
            await asyncio.Event().wait()

    for turns in range(4):
        task = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    if (home / "tmp").exists():  # else it was cancelled before each of them began
        assert names(home / "tmp") == []


def test_what_a_killed_process_left_goes_with_the_next_one(home: Path) -> None:
    place = dead_one()
    with Scratch() as mine:
        assert not place.exists()
        assert names(home / "tmp") == [mine.name, f"{mine.name}.lock"]


def test_that_of_a_living_process_is_spared() -> None:
    with holder() as (_, _, place), Scratch() as mine:
        with Scratch():
            assert mine.exists(), "a sweep of our own"
        assert (place / "secret").exists()


def test_it_is_spared_while_a_forked_child_lives_that_may_use_it() -> None:
    with holder("fork") as (process, child, place):
        try:
            kill(process)
            with Scratch():
                assert (place / "secret").exists()
        finally:
            pidfd = os.pidfd_open(child)
            os.kill(child, signal.SIGKILL)
            signal_of_end(pidfd)
    with Scratch():
        assert not place.exists()


def signal_of_end(pidfd: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    assert select.select([pidfd], [], [], 60)[0]
    os.close(pidfd)


def test_a_child_with_a_program_of_its_own_holds_nothing(home: Path) -> None:
    with Scratch() as place:
        code = "import os; print(sorted(os.readlink(f'/proc/self/fd/{n}') for n in range(3, 64)"
        code += " if os.path.exists(f'/proc/self/fd/{n}')))"
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, close_fds=False
        )
        assert said.returncode == 0, said.stderr
        assert place.name not in said.stdout


def test_the_end_lets_go_though_a_forked_child_lives(home: Path) -> None:
    """Else what could not be removed at the end would stay for as long as that child lives."""
    scratch = Scratch()
    place = scratch.make()
    assert scratch.make() == place, "made once"
    lock = next(
        int(fd)
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
        and os.readlink(f"/proc/self/fd/{fd}") == f"{place}.lock"
    )
    inherited = os.dup(lock)  # as a fork does: another descriptor of the same open file
    try:
        scratch.remove()
        scratch.remove()
        place.mkdir()
        place.with_name(f"{place.name}.lock").touch()
        sweep_scratch()
        assert not place.exists()
    finally:
        os.close(inherited)
    assert names(home / "tmp") == []


def hostile(place: Path, outside: Path) -> None:
    """Unreadable, very deep, and pointing out of it."""
    (place / "to-a-file").symlink_to(outside / "kept")
    (place / "to-a-directory").symlink_to(outside, target_is_directory=True)
    (place / "\udcff\n").write_text("a name that is no text")
    os.mkfifo(place / "pipe")
    closed = place / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner" / "out").symlink_to("../../../../..")
    for each in (closed / "inner", closed, place):
        each.chmod(0)
    place.chmod(0o300)
    at = os.open(place, os.O_PATH | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_PATH | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    place.chmod(0)


@pytest.mark.parametrize("how", ["at the end", "by a sweep"])
def test_hostile_content_goes_and_nothing_else(home: Path, tmp_path: Path, how: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_text("x")
    if how == "at the end":
        with Scratch() as place:
            hostile(place, outside)
    else:
        hostile(dead_one(), outside)
        with Scratch():
            assert len(names(home / "tmp")) == 2
    assert names(home / "tmp") == []
    assert names(outside) == ["kept"]
    assert stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_a_sweep_leaves_what_is_not_ours_and_never_fails(home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    tmp = home / "tmp"
    tmp.mkdir(parents=True)
    (tmp / "a link").symlink_to(outside)
    (tmp / "0123456789abcd").mkdir()  # no lock: not made by us
    (tmp / "aaaaaaaaaaaaaa").symlink_to(outside)
    (tmp / "aaaaaaaaaaaaaa.lock").touch()
    (tmp / "bbbbbbbbbbbbbb.lock").symlink_to(outside / "inner")
    (tmp / "cccccccccccccc.lock").mkdir()
    os.mkfifo(tmp / "dddddddddddddd.lock")
    (tmp / "eeeeeeeeeeeeee").write_text("a file")
    (tmp / "eeeeeeeeeeeeee.lock").touch()
    (tmp / "..lock").touch()
    before = names(tmp)
    with Scratch():
        pass
    assert set(before) - set(names(tmp)) <= {"dddddddddddddd.lock"}, (
        "there is no directory beside it"
    )
    assert names(outside) == ["inner"]


def test_many_at_once_lose_nothing(home: Path) -> None:
    """Threads and processes that make, sweep and remove at the same time."""
    code = (
        "from ramify.contracts.scratch import Scratch\n"
        "for n in range(150):\n"
        "    with Scratch() as place:\n"
        "        (place / 'a').mkdir(); (place / 'a' / 'b').touch()\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                with Scratch() as place:
                    (place / "file").write_text("x")
                    assert names(place) == ["file"]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert failed == []
    assert names(home / "tmp") == []


def test_killed_at_any_moment_nothing_stays(home: Path) -> None:
    """Killed while it makes and removes directories without a pause."""
    code = (
        "from ramify.contracts.scratch import Scratch\n"
        "print('here', flush=True)\n"
        "while True:\n"
        "    with Scratch() as place: (place / 'a').touch()\n"
    )
    for number in range(12):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            threading.Event().wait(0.0007 * number)
            process.kill()
        with Scratch() as mine:
            assert names(home / "tmp") == [mine.name, f"{mine.name}.lock"]


def test_below_another_directory_it_is_hidden_and_swept_as_well(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "results"
    with Scratch(place) as mine:
        assert mine.parent == place
        assert mine.name.startswith(".ramify-")
        (mine / "made").mkdir()
        (mine / "made").rename(place / "made")
        dead = place / ".ramify-0123456789abcd"
        dead.mkdir()
        dead.with_name(f"{dead.name}.lock").touch()
        with Scratch(place):
            assert not dead.exists()
    assert names(place) == ["made"]
    assert not home.exists()


def test_a_home_that_cannot_be_written_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError) as caught, Scratch():
        pass
    assert str(caught.value) == (
        f"cannot write {tmp_path}/file/tmp: Not a directory; "
        "set RAMIFY_HOME to a directory that can be written"
    )
