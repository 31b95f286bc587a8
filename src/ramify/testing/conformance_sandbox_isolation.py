"""Checks of isolation, lockdown, resource limits, and whether capabilities are honest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ramify.contracts.errors import RamifyError, UnsupportedError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.sandbox import (
    BuildSpec,
    Limits,
    Mount,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.testing.check import CheckSkipped, ConformanceError, check, equal, raises, require
from ramify.testing.sandbox_bench import SandboxBench, alive, mark, need_program, sh

VARIABLE = "RAMIFY_CONFORMANCE_SECRET"


@contextmanager
def _secret_in_the_engine(value: str) -> Generator[None]:
    os.environ[VARIABLE] = value
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def _namespaces() -> dict[str, str]:
    return {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("pid", "mnt", "ipc")}


@check("isolation")
async def _host_files_are_invisible(bench: SandboxBench) -> None:
    """The inside cannot read the host: a file in the engine's temporary directory is not there."""
    (bench.scratch / "marker").write_bytes(b"host")
    async with bench.sandbox() as sandbox:
        for root in ("", "/proc/1/root", "/proc/self/root"):
            path = f"{root}{bench.scratch}/marker"
            result = await sandbox.exec(["cat", path])
            require(not result.ok, f"{path} can be read inside")
        listed = await sh(sandbox, f"ls -A {bench.scratch.parent} 2>/dev/null; :")
        equal(listed, "", "what the inside sees of the engine's temporary directory")


@check("isolation")
async def _writes_do_not_reach_the_host(bench: SandboxBench) -> None:
    """The inside cannot write the host: the same path inside is another file."""
    leak = bench.scratch / "leak"
    name = f"conformance-{mark()}"
    async with bench.sandbox() as sandbox:
        await sandbox.exec(f"mkdir -p {bench.scratch}; echo leaked > {leak}")
        await sandbox.exec(f"for d in / /etc /usr /tmp /var/tmp /root; do echo x > $d/{name}; done")
        require(not leak.exists(), "a file written inside appears on the host")
        for directory in ("/", "/etc", "/usr", "/tmp", "/var/tmp", "/root"):
            found = os.access(f"{directory}/{name}", os.F_OK)
            require(not found, f"a file written to {directory} inside appears on the host")


@check("isolation")
async def _engine_environment_is_invisible(bench: SandboxBench) -> None:
    """The environment of the engine, where its keys are, does not reach the inside."""
    value = mark()
    with _secret_in_the_engine(value):
        async with bench.sandbox() as sandbox:
            equal(await sh(sandbox, f'echo "${VARIABLE}"'), "", "the engine's variable inside")
            script = f"grep -la '[3]{value[1:]}' /proc/[0-9]*/environ /proc/1/cmdline 2>/dev/null;:"
            equal(await sh(sandbox, script), "", "processes inside that hold it")


@check("isolation")
async def _host_processes_are_invisible(bench: SandboxBench) -> None:
    """An isolated process space: the inside neither sees nor signals processes of the host."""
    marker = mark()
    host = await asyncio.create_subprocess_exec("sleep", marker)
    try:
        async with bench.sandbox() as sandbox:
            equal(await alive(sandbox, marker), 0, "processes of the host seen inside")
            await sandbox.exec(f"kill -9 {host.pid}")
            equal(host.returncode, None, "return code of a process of the host")
            mine = await asyncio.to_thread(_namespaces)
            for name, value in mine.items():
                inside = await sh(sandbox, f"readlink /proc/self/ns/{name}")
                require(inside != value, f"inside and engine share their {name} namespace")
    finally:
        host.kill()
        await host.wait()


@check("isolation")
async def _sandboxes_do_not_see_each_other(bench: SandboxBench) -> None:
    """Two sandboxes share neither files nor processes."""
    marker = mark()
    async with bench.sandbox() as one, bench.sandbox() as two:
        process = await one.spawn(f"echo x > /tmp/{marker}; echo up; exec sleep {marker}")
        await process.read(3)
        equal(await alive(two, marker), 0, "processes of the other sandbox")
        require(not (await two.exec(f"test -e /tmp/{marker}")).ok, "a file of the other sandbox")
        equal(await alive(one, marker), 1, "its own process")
        await process.aclose()


@check("isolation")
async def _no_control_socket_inside(bench: SandboxBench) -> None:
    """The inside cannot reach the engine's or the container engine's control sockets."""
    async with bench.sandbox() as sandbox:
        for path in ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd"):
            require(not (await sandbox.exec(["test", "-S", path])).ok, f"{path} is inside")
        writable = "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do test -w $f && "
        script = writable + 'sh -c ": >> $f" 2>/dev/null && echo $f; done; :'
        equal(await sh(sandbox, script), "", "kernel switches that the inside may write")


@check("lockdown")
async def _lockdown_drops_privileges(bench: SandboxBench) -> None:
    """`lockdown` is the hardened profile: no new privileges, capabilities dropped."""
    async with bench.sandbox(msgspec.structs.replace(bench.spec, lockdown=True)) as sandbox:
        status = dict(
            line.split(":", 1) for line in (await sh(sandbox, "cat /proc/self/status")).splitlines()
        )
        equal(status["NoNewPrivs"].strip(), "1", "NoNewPrivs")
        effective = int(status["CapEff"], 16)
        dangerous = {"sys_ptrace": 19, "sys_admin": 21, "sys_module": 16, "net_admin": 12}
        held = [name for name, bit in dangerous.items() if effective >> bit & 1]
        equal(held, [], "capabilities held under lockdown")
        equal(await sh(sandbox, "echo works"), "works", "a command under lockdown")


def _limited(bench: SandboxBench, limits: Limits) -> SandboxSpec:
    return msgspec.structs.replace(bench.spec, limits=limits)


@check("limits.memory_mb")
async def _memory_is_limited(bench: SandboxBench) -> None:
    """Memory beyond the limit is not given: the command is killed, and oom_killed says so."""
    async with bench.sandbox(_limited(bench, Limits(memory_mb=96))) as sandbox:
        command = ["dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1"]
        result = await sandbox.exec(command, timeout_sec=15)
        require(not result.ok, "400 MiB were given under a limit of 96 MiB")
        equal((result.exit_code, result.oom_killed), (137, True), "exit_code and oom_killed")
        small = await sandbox.exec("dd if=/dev/zero of=/dev/null bs=8M count=1; exit 3")
        equal((small.exit_code, small.oom_killed), (3, False), "the next command")


@check("limits.pids")
async def _fork_bomb_is_held(bench: SandboxBench) -> None:
    """No more processes than the limit: a fork bomb is held, and the sandbox goes on."""
    async with bench.sandbox(_limited(bench, Limits(pids=64))) as sandbox:
        script = f"i=0; while [ $i -lt 200 ]; do sleep {mark()} & i=$((i+1)); echo $i; done"
        result = await sandbox.exec(script, timeout_sec=10, kill_leftovers=True)
        made = int((result.stdout.split() or [b"0"])[-1])
        require(10 < made <= 64, f"{made} processes were made under a limit of 64")
        equal(await sh(sandbox, "echo on"), "on", "the next command")


@check("limits.disk_mb")
async def _disk_is_limited(bench: SandboxBench) -> None:
    """Writable disk beyond the limit is not given."""
    async with bench.place(_limited(bench, Limits(disk_mb=32))) as (sandbox, work):
        result = await sandbox.exec(f"dd if=/dev/zero of={work}/f bs=1M count=64", timeout_sec=15)
        require(not result.ok, "64 MiB were written under a limit of 32 MiB")
        await sh(sandbox, f"rm {work}/f && echo x > {work}/g")


@check("limits.cpus")
async def _cpu_is_limited(bench: SandboxBench) -> None:
    """CPU time beyond the limit is not given."""
    async with bench.sandbox(_limited(bench, Limits(cpus=0.25))) as sandbox:
        await need_program(sandbox, "timeout")
        result = await sandbox.exec("timeout 1 sh -c 'while :; do :; done'; times", timeout_sec=10)
        children = result.stdout.decode().splitlines()[-1].split()
        used = sum(float(t.partition("m")[2].rstrip("s").replace(",", ".")) for t in children)
        require(0.02 < used < 0.7, f"{used:.2f} s of CPU in 1 s under a limit of 0.25 cores")


@check()
async def _capabilities_agree(bench: SandboxBench) -> None:
    """A sandbox's capabilities are among its provider's, and match what it is an instance of."""
    offered = bench.provider.capabilities()
    async with bench.sandbox() as sandbox:
        own = sandbox.capabilities()
        equal(own.isolation, offered.isolation, "isolation")
        require(own.limits <= offered.limits, f"limits {own.limits} of {offered.limits}")
        known = {"memory_mb", "cpus", "pids", "disk_mb"}
        require(own.limits <= known, f"limits {sorted(own.limits)}; the names are {sorted(known)}")
        require(own.network <= offered.network, f"network {own.network} of {offered.network}")
        if own.snapshot != "none":
            require(isinstance(sandbox, Freezable), f"snapshot is {own.snapshot}, but no freeze()")
        if own.snapshot == "live":
            require(isinstance(sandbox, Snapshottable), "snapshot is live, but no checkpoint()")


def _beyond(bench: SandboxBench) -> dict[str, SandboxSpec]:
    """Specs that demand what the provider does not offer."""
    offered, spec = bench.provider.capabilities(), bench.spec
    demands = {
        "lockdown": None if offered.lockdown else msgspec.structs.replace(spec, lockdown=True),
        "host_root": None if offered.host_root else SandboxSpec(host_root=True),
        "images": None if offered.images else SandboxSpec(image="conformance:absent"),
        "builds": None if offered.builds else SandboxSpec(build=BuildSpec(str(bench.scratch))),
    }
    for name, limits in (
        ("memory_mb", Limits(memory_mb=64)),
        ("pids", Limits(pids=64)),
        ("disk_mb", Limits(disk_mb=64)),
        ("cpus", Limits(cpus=0.5)),
    ):
        if name not in offered.limits:
            demands[f"limits.{name}"] = msgspec.structs.replace(spec, limits=limits)
    place = str(bench.scratch.resolve())
    for mount in (
        Mount(place, "/srv/x"), Mount(place, "/srv/x", "rw"), Mount(place, "/srv/x", "cow", place),
    ):  # fmt: skip
        if mount.mode not in offered.mounts:
            demands[f"mounts.{mount.mode}"] = msgspec.structs.replace(spec, mounts=(mount,))
    if not offered.mounts:
        demands["read_only"] = msgspec.structs.replace(spec, read_only=True)
    for mode in NetworkMode:
        if mode not in offered.network:
            policy = NetworkPolicy(mode, ("example.org",) if mode == "allowlist" else ())
            demands[f"network.{mode}"] = msgspec.structs.replace(spec, network=policy)
    return {name: demand for name, demand in demands.items() if demand is not None}


@check()
async def _demands_beyond_capabilities_are_refused(bench: SandboxBench) -> None:
    """A demand that cannot be met raises UnsupportedError; it is never dropped in silence."""
    beyond = _beyond(bench)
    if not beyond:
        raise CheckSkipped("the provider offers everything that can be demanded")
    for name, spec in beyond.items():
        with raises(UnsupportedError, doing=f"create() with a demand for {name}"):
            await (await bench.provider.create(spec)).teardown()


@check()
async def _ambiguous_spec_is_refused(bench: SandboxBench) -> None:
    """Exactly one of image, build and host_root says what the root file system is."""
    for spec in (SandboxSpec(), SandboxSpec(image="x", host_root=True)):
        try:
            sandbox = await bench.provider.create(spec)
        except RamifyError:
            continue
        await sandbox.teardown()
        raise ConformanceError(f"{spec} was accepted")


ISOLATION_CHECKS = (
    _host_files_are_invisible,
    _writes_do_not_reach_the_host,
    _engine_environment_is_invisible,
    _host_processes_are_invisible,
    _sandboxes_do_not_see_each_other,
    _no_control_socket_inside,
    _lockdown_drops_privileges,
    _memory_is_limited,
    _fork_bomb_is_held,
    _disk_is_limited,
    _cpu_is_limited,
    _capabilities_agree,
    _demands_beyond_capabilities_are_refused,
    _ambiguous_spec_is_refused,
)
"""Checks of isolation, limits and capabilities."""
