"""Live checkpoints: files that are written to, what cannot be captured, and what is left of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from live_parts import (
    COUNTER,
    LIVE,
    ask,
    attached,
    captured,
    children,
    lines,
    live_provider,
    python,
)

from ramify.contracts.errors import SandboxStartError, StoreError, UnsupportedError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.sandbox import Limits, NetworkMode, NetworkPolicy, SandboxImage, SandboxSpec
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    async for provider in live_provider(namespaces_problem):
        yield provider


async def test_a_database_that_is_being_written_to(provider: LocalProvider) -> None:
    """Its inode number stays the same at any depth, else SQLite would refuse to write."""
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(COUNTER))
    assert await ask(process, "1") == "1 1"
    images: list[SandboxImage] = []
    for depth in range(2, 6):
        images.append(await captured(sandbox))
        async with children(provider, images[-1], 2) as copies:
            for copy in copies:
                assert await ask(attached(copy, process), f"{depth}00") == f"{depth} {depth}00"
        sandbox = await provider.create(LIVE, images[-1])
        process = attached(sandbox, process)
        assert await ask(process, str(depth)) == f"{depth} {depth}"
    await sandbox.teardown()
    for image in images:
        await provider.discard(image)
    for image in images:
        with pytest.raises((SandboxStartError, StoreError), match="gone|discarded"):
            await provider.create(LIVE, image)


EXOTIC = """
import ctypes, sys
fd = ctypes.CDLL(None).syscall(323, 1)
print("userfaultfd" if fd >= 0 else "no", flush=True)
for line in sys.stdin:
    print("still " + line.strip(), flush=True)
"""


async def test_what_cannot_be_captured_leaves_the_sandbox_as_it_was(
    provider: LocalProvider,
) -> None:
    sandbox = await provider.create(LIVE)
    assert isinstance(sandbox, Snapshottable)
    process = await sandbox.spawn(python(EXOTIC))
    if await lines(process) == ["no"]:
        await sandbox.teardown()
        pytest.skip("this kernel has no userfaultfd")
    other = await sandbox.spawn(["cat"])
    for number in range(2):
        with pytest.raises(UnsupportedError, match="userfaultfd"):
            await sandbox.checkpoint()
        assert await ask(process, str(number)) == f"still {number}"
        assert await ask(other, "echo") == "echo"
        assert (await sandbox.exec("echo fine")).stdout == b"fine\n"
    await process.aclose()
    image = await captured(sandbox)
    async with children(provider, image, 1) as (copy,):
        assert await ask(attached(copy, other), "again") == "again"
    await provider.discard(image)


RING = """
import ctypes
params = ctypes.create_string_buffer(120)
print(ctypes.CDLL(None).syscall(425, 8, params), flush=True)
"""


async def test_event_loops_fall_back_from_what_cannot_be_captured(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(RING))
    said = await lines(process)
    await sandbox.teardown()
    if said != ["-1"] and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 14):
        pytest.skip("this kernel does not count the memory of an io_uring as locked")
    assert said == ["-1"]


async def test_a_live_image_needs_a_live_spec(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    image = await captured(sandbox)
    with pytest.raises(UnsupportedError, match="live"):
        await provider.create(SandboxSpec(host_root=True), image)
    files = msgspec.structs.replace(image, live=False)
    plain = await provider.create(SandboxSpec(host_root=True), files)
    assert not isinstance(plain, Snapshottable)
    await plain.teardown()
    await provider.discard(image)


async def test_a_corrupt_dump_is_one_typed_error(
    provider: LocalProvider, ramify_home: Path
) -> None:
    sandbox = await provider.create(LIVE)
    await sandbox.spawn(["cat"])
    image = await captured(sandbox)
    (place,) = _found(ramify_home, f"sandbox/run/*/dumps/{image.id}")
    for name, cut, tail in (
        ("images/pages-1.img", 1, b""),
        ("images/pstree.img", 40, bytes(40)),
        ("record", 2, b"??"),
    ):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(whole[:-cut] + tail)
        with pytest.raises(SandboxStartError, match=r"corrupt|cannot be restored"):
            await provider.create(LIVE, image)
        (place / name).write_bytes(whole)
    for _ in range(200):  # the spawner deletes in the background
        if not _found(ramify_home, f"sandbox/run/{place.parents[1].name}/*/root"):
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the directory of a sandbox is left")
    async with children(provider, image, 1):
        pass
    await provider.discard(image)
    with pytest.raises((SandboxStartError, StoreError)):
        await provider.create(LIVE, image)
    foreign = msgspec.structs.replace(image, id="feedfeedfeed")
    with pytest.raises((SandboxStartError, StoreError)):
        await provider.create(LIVE, foreign)


async def test_lockdown_and_plain_mode_refuse_live(provider: LocalProvider) -> None:
    with pytest.raises(UnsupportedError, match="lockdown"):
        await provider.create(SandboxSpec(host_root=True, live=True, lockdown=True))
    if os.geteuid() != 0:
        return
    plain = LocalProvider(mode="plain")
    try:
        with pytest.raises(UnsupportedError, match="user namespace"):
            await plain.create(LIVE)
        assert plain.capabilities().snapshot == "freeze"
    finally:
        await plain.aclose()


LOOK = (
    "cat /proc/self/status | grep -E '^(Cap|Seccomp|NoNew)'; id; umask; cut -d' ' -f2- /proc/mounts"
)


async def test_limits_mounts_and_privileges_are_those_of_any_sandbox(
    provider: LocalProvider,
) -> None:
    limits = (("memory_mb", 300), ("pids", 60))
    kept = {name: value for name, value in limits if name in provider.capabilities().limits}
    network = NetworkPolicy(NetworkMode.ALLOWLIST, ("allowed.example",))
    spec = SandboxSpec(host_root=True, live=True, limits=Limits(**kept), network=network)
    ordinary = await provider.create(msgspec.structs.replace(spec, live=False))
    live = await provider.create(spec)
    seen = [(await one.exec(LOOK)).stdout.decode().splitlines() for one in (ordinary, live)]
    own = [[row for row in rows if ".pod" not in row and "overlay" not in row] for rows in seen]
    assert own[0] == own[1]
    shell = await live.spawn(python("import sys\nfor line in sys.stdin: print(eval(line))"))
    assert await ask(shell, "open('/proc/self/status').read().split('CapBnd:')[1][:17].strip()")
    status = "[row for row in open('/proc/self/status') if row[:3] in ('Cap', 'NoN', 'Uid', 'Sec')]"
    before = await ask(shell, status)
    image = await captured(live)
    async with children(provider, image, 2, spec) as copies:
        for copy in copies:
            assert await ask(attached(copy, shell), status) == before
            rows = (await copy.exec(LOOK)).stdout.decode().splitlines()
            assert [row for row in rows if ".pod" not in row and "overlay" not in row] == own[0]
            get = "import urllib.request as u; u.urlopen('http://denied.example/', timeout=5)"
            refused = await copy.exec(python(get))
            assert b"403" in refused.stderr
            if "pids" in kept:
                crowd = "for i in $(seq 80); do sleep 5 & done; wait"
                result = await copy.exec(crowd, timeout_sec=20, kill_leftovers=True)
                assert b"ork" in result.stderr
            if "memory_mb" in kept:
                eat = "import os; len(bytearray(400 << 20))"
                assert (await copy.exec(python(eat))).exit_code == 137
    await ordinary.teardown()
    await provider.discard(image)


async def test_copies_do_not_see_each_other(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(COUNTER))
    assert await ask(process, "1") == "1 1"
    image = await captured(sandbox)
    async with children(provider, image, 4) as copies:
        for number, copy in enumerate(copies):
            assert await ask(attached(copy, process), str(10 + number)) == f"2 {10 + number}"
            await copy.exec(f"echo {number} > /var/tmp/same")
        for number, copy in enumerate(copies):
            assert (await copy.exec("cat /var/tmp/same")).stdout == b"%d\n" % number
    await provider.discard(image)


KILLED = """
import asyncio, os, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider

async def main():
    home, step, delay = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    provider = LocalProvider(home)
    spec = SandboxSpec(host_root=True, live=True)
    sandbox = await provider.create(spec)
    process = await sandbox.spawn(["/usr/bin/python3", "-c",
        "import time; x = bytearray(b'x') * (30 << 20); print('up', flush=True); time.sleep(99)"])
    await process.read()
    loop = asyncio.get_running_loop()
    if step == "dump":
        loop.call_later(delay, os.kill, os.getpid(), 9)
    image = await sandbox.checkpoint()
    if step == "restore":
        loop.call_later(delay, os.kill, os.getpid(), 9)
    await asyncio.gather(*(provider.create(spec, image) for _ in range(3)))
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["dump", "restore"])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1])
async def test_an_engine_that_is_killed_leaves_nothing(
    provider: LocalProvider, tmp_path: Path, step: str, delay: float
) -> None:
    home = tmp_path / "home"
    arguments = [sys.executable, "-c", KILLED, str(home), step, str(delay)]
    engine = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
    _out, errors = await engine.communicate()
    assert engine.returncode == -signal.SIGKILL, errors.decode()
    alive: set[str] = set()
    for _ in range(200):
        alive = _mentions("mountinfo", str(home)) | _mentions("cmdline", "bytearray(b'x') *")
        if not alive and not list((home / "run").iterdir()):
            break
        await asyncio.sleep(0.05)
    assert not alive
    after = LocalProvider(home)
    try:
        await after.sweep()
        assert not list((home / "run").iterdir())
        assert not list((home / "store" / "images").iterdir())
        assert not list((home / "store" / "layers").iterdir())
    finally:
        await after.aclose()


def _found(home: Path, pattern: str) -> list[Path]:
    return list(home.glob(pattern))


def _mentions(file: str, text: str) -> set[str]:
    """Processes with `text` in that file of /proc, our own family left out."""
    found: set[str] = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/{file}") as opened:
                if int(name) != os.getpid() and text in opened.read():
                    found.add(name)
        except OSError:  # it ended meanwhile
            continue
    return found
