"""Parts of the local provider that need no namespaces: cgroup files, messages, masks, watching."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, SandboxStartError, UnsupportedError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import BareProvider, LocalProvider, cgroups, wire
from ramify.planes.sandbox.local.disk import DiskWatch
from ramify.planes.sandbox.local.hostroot import found_base, host_base
from ramify.planes.sandbox.local.leftovers import sweep
from ramify.planes.sandbox.local.process import dead_engines, make_engine_directory


def fake_proc(tmp_path: Path, own: str, mounts: str) -> str:
    place = tmp_path / "proc" / "self"
    place.mkdir(parents=True)
    (place / "cgroup").write_text(own)
    (place / "mounts").write_text(mounts)
    return str(tmp_path / "proc")


def test_v2_limits_go_below_a_cgroup_without_processes(tmp_path: Path) -> None:
    top = tmp_path / "cgroup"
    scope = top / "user" / "app.slice" / "run.scope"
    scope.mkdir(parents=True)
    for place in (top, scope.parent):
        (place / "cgroup.subtree_control").write_text("pids")
        (place / "cgroup.procs").write_text("")
    (scope.parent / "cgroup.controllers").write_text("cpu memory pids\n")
    (top / "cgroup.controllers").write_text("\n")
    proc = fake_proc(
        tmp_path, "0::/user/app.slice/run.scope\n", f"cgroup2 {top} cgroup2 rw,nosuid 0 0\n"
    )
    layout = cgroups.discover(proc)
    assert layout.version == 2
    assert layout.enforced == {"memory", "pids", "cpu"}
    assert set(layout.parents.values()) == {str(scope.parent)}

    made_dir = scope.parent / "ramify-x"
    kernel_files = ("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.procs")
    real_mkdir = os.mkdir

    def mkdir_like_the_kernel(path: str, *rest: int) -> None:
        real_mkdir(path, *rest)
        for name in kernel_files:
            Path(path, name).write_text("")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkdir", mkdir_like_the_kernel)
        made = cgroups.make(layout, "ramify-x", cgroups.Wanted(64 << 20, 30, 0.5))
    assert made == [str(made_dir)]
    written = {name: (made_dir / name).read_text() for name in kernel_files}
    assert written == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "pids.max": "30",
        "cpu.max": "50000 100000",
        "cgroup.procs": "",
    }
    cgroups.enter(made)
    assert (made_dir / "cgroup.procs").read_text() == "0"
    assert cgroups.leftovers(layout, "ramify-") == made
    (made_dir / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert cgroups.oom_kills(made) == 2


def test_nothing_is_enforced_where_no_cgroup_is_writable(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "0::/a\n", f"cgroup2 {tmp_path}/missing cgroup2 rw 0 0\n")
    assert cgroups.discover(proc) == cgroups.Layout(0, {})


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.text(max_size=300), max_size=40), st.booleans())
def test_messages_survive_any_size(values: dict[str, str], large: bool) -> None:
    ours, theirs = wire.pair()
    message = {"values": values, "bulk": "é" * 90_000 if large else ""}
    extra = os.open("/dev/null", os.O_RDONLY)
    wire.send(ours, message, [extra, extra])
    received = wire.receive(theirs)
    assert received is not None
    assert received[0] == message
    assert len(received[1]) == 2
    assert not any(os.get_inheritable(fd) for fd in received[1])
    ours.close()
    assert wire.receive(theirs) is None
    theirs.close()
    for fd in (extra, *received[1]):
        os.close(fd)


def is_hidden(mask: Path, name: str) -> bool:
    """Whether a mask shows nothing of the host at `name`."""
    at = mask / name
    if not os.path.lexists(at):
        return any(
            os.path.lexists(mask / parent) and not (mask / parent).is_dir()
            for parent in Path(name).parents
        )
    info = at.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def test_the_host_base_hides_secrets_and_private_places(tmp_path: Path) -> None:
    private = Path("/usr/share/doc")
    base = host_base(tmp_path / "masks", (private, tmp_path), os.geteuid() == 0)
    mask = tmp_path / "masks" / base.digest[:16]
    for name in ("etc/shadow", "etc/sudoers", "etc/ssl/private", "usr/share/doc"):
        if os.path.lexists(f"/{name}"):
            assert is_hidden(mask, name), name
    for name in os.listdir("/etc"):
        mode = os.lstat(f"/etc/{name}").st_mode
        if stat.S_ISREG(mode) and not mode & 0o004:
            assert is_hidden(mask, f"etc/{name}"), name
    assert {part.target for part in base.parts} <= {"", *os.listdir("/")} - {"home", "root", "var"}
    assert sorted(os.listdir(mask / "root" / "home")) == []
    assert stat.S_IMODE((mask / "root" / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((mask / "etc").stat().st_mode) == stat.S_IMODE(os.stat("/etc").st_mode)
    assert host_base(tmp_path / "masks", (private, tmp_path), os.geteuid() == 0) == base
    assert found_base(mask) == base


async def test_the_disk_watch_kills_once_per_excess(tmp_path: Path) -> None:
    killed = asyncio.Event()
    watch = DiskWatch([tmp_path], 100_000)
    watch.start(killed.set)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(os.urandom(300_000))
    async with asyncio.timeout(5):
        await killed.wait()
    killed.clear()
    await asyncio.sleep(1.2)
    assert (watch.kills, killed.is_set()) == (1, False)  # what is there may stay; it may not grow
    (tmp_path / "more").write_bytes(os.urandom(300_000))
    async with asyncio.timeout(5):
        await killed.wait()
    await watch.aclose()


def test_only_dead_engines_are_swept(tmp_path: Path) -> None:
    alive, lock = make_engine_directory(tmp_path)
    dead, dead_lock = make_engine_directory(tmp_path)
    os.close(dead_lock)
    (dead / "box" / "root").mkdir(parents=True)
    assert dead_engines(tmp_path) == [dead]
    assert sweep(tmp_path, cgroups.Layout(0, {})) == 1
    assert [p.name for p in tmp_path.iterdir()] == [alive.name]
    os.close(lock)


async def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    local = LocalProvider(tmp_path)
    report = await local.probe()
    if not report.ok:
        with pytest.raises(SandboxStartError, match="does not work here"):
            await local.create(SandboxSpec(host_root=True))
        return
    for wrong in (SandboxSpec(), SandboxSpec(image="x", host_root=True)):
        with pytest.raises(ConfigError, match="exactly one"):
            await local.create(wrong)
    with pytest.raises(ConfigError, match="no image"):
        await local.create(SandboxSpec(image="nowhere:latest"))
    with pytest.raises(ConfigError, match="no image"):
        await local.create(SandboxSpec(image=str(tmp_path / "missing.tar")))
    await local.aclose()
    bare = BareProvider(tmp_path)
    with pytest.raises(UnsupportedError, match="no images"):
        await bare.create(SandboxSpec(image="debian"))
    await bare.aclose()


def test_an_engine_that_died_with_mail_unread_is_a_connection_error() -> None:
    """What the spawner and the supervisors must expect of their next word to a dead engine."""
    ours, engine = wire.pair()
    wire.send(ours, {"event": "ready"})
    engine.close()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            wire.send(ours, {"event": "gone"})
    assert wire.receive(ours) is None
    ours.close()
