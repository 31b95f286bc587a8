"""The program that live sandboxes hold: it is what its source says, and nothing of the host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from live_parts import LIVE, ask, lines, live_provider, python

from ramify.planes.sandbox.local import LocalProvider, pod_elf
from ramify.planes.sandbox.local.mending import mend

IN_LOOP = pytest.mark.asyncio(loop_scope="module")
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(pod_elf.__file__).with_name("pod.c")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    async for provider in live_provider(namespaces_problem):
        yield provider


async def test_it_was_built_from_its_source() -> None:
    source = await asyncio.to_thread(SOURCE.read_bytes)
    assert hashlib.sha256(source).hexdigest() == pod_elf.SOURCE_SHA256, "run dev/pod"


async def test_a_build_gives_the_same_program(tmp_path: Path) -> None:
    """Other compilers may choose other instructions, but not another size by much."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    build = await asyncio.create_subprocess_exec(str(ROOT / "dev" / "pod"), str(tmp_path / "pod"))
    assert await build.wait() == 0
    made = await asyncio.to_thread((tmp_path / "pod").read_bytes)
    assert made[:20] == pod_elf.PROGRAM[:20]
    same_compiler = made == pod_elf.PROGRAM
    assert same_compiler or abs(len(made) - len(pod_elf.PROGRAM)) < 2048
    assert b"/dev/pts/ptmx" in made


@IN_LOOP
@pytest.mark.namespaces
async def test_the_inside_cannot_touch_it(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    for attempt in (
        "echo x > /dev/.pod",
        "rm -f /dev/.pod",
        "mv /dev/.pod /tmp",
        "umount /dev/.pod",
    ):
        assert (await sandbox.exec(attempt)).exit_code != 0
    own = await sandbox.exec("cat /proc/2/maps")
    assert b".pod" in own.stdout
    assert b"python" not in own.stdout
    await sandbox.teardown()


@IN_LOOP
@pytest.mark.namespaces
async def test_who_kills_the_pod_kills_only_its_commands(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(["cat"])
    await sandbox.exec("kill -9 2; kill -9 $(pgrep -x pod)")
    assert await process.wait() == 137
    assert (await sandbox.exec("pgrep -x cat | wc -l")).stdout == b"0\n"
    again = await sandbox.spawn(python("print(input(), flush=True)"))
    assert await ask(again, "fine") == "fine"
    await sandbox.teardown()


@IN_LOOP
@pytest.mark.namespaces
async def test_a_stranger_at_its_socket_is_sent_away(provider: LocalProvider) -> None:
    code = """
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect("\\0ramify-pod")
print("in", flush=True)
input()
"""
    sandbox = await provider.create(LIVE)
    stranger = await sandbox.spawn(python(code))
    assert await lines(stranger) == ["in"]
    await sandbox.exec("kill -9 2")
    assert (await sandbox.exec("echo works")).stdout == b"works\n"
    await sandbox.teardown()


def test_an_image_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pstree.img").write_bytes(b"magicmag" + b"\x02\0\0\0" + b"\x0d\0")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="form"):
            mend(fd)
    finally:
        os.close(fd)
