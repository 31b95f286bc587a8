"""The local provider's own promises: modes, limits, death of the engine, freezing, egress."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from ramify.contracts.errors import SandboxLostError, UnsupportedError
from ramify.contracts.process import PtySize
from ramify.contracts.sandbox import (
    MIB,
    Limits,
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxSpec,
)
from ramify.planes.sandbox.local import BareProvider, LocalProvider, cgroups
from ramify.planes.sandbox.local.sandbox import LocalSandbox
from ramify.planes.sandbox.processes import process_table

pytestmark = pytest.mark.namespaces

HOST = SandboxSpec(host_root=True)
SOURCE = str(Path(__file__).resolve().parents[2])
MODES = ["userns", "plain"] if os.geteuid() == 0 else ["rootless"]


def processes_with(marker: str) -> list[int]:
    """Pids on this host whose command line holds `marker`, zombies left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in line and int(name) != os.getpid():
                found.append(int(name))
    return found


def cgroups_with(engine: str) -> list[str]:
    return cgroups.leftovers(cgroups.discover(), f"ramify-{engine}")


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return condition()


async def gone(marker: str) -> bool:
    return await until(lambda: not processes_with(marker))


def is_mounted(name: str) -> bool:
    return name in Path("/proc/mounts").read_text()


@pytest_asyncio.fixture(params=MODES)
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path, namespaces_available: None
) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(tmp_path / "home", mode=request.param)
    await provider.probe()
    yield provider
    await provider.aclose()
    assert not list((tmp_path / "home" / "run").glob("*"))


@pytest_asyncio.fixture
async def sandbox(provider: LocalProvider) -> Sandbox:
    return await provider.create(HOST)


async def test_root_inside_has_no_power_over_the_kernel(sandbox: Sandbox) -> None:
    for command in (
        "mount -t tmpfs x /mnt",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/disk b 254 0",
        "dmesg -C",
        "kill -9 1; kill -STOP 1; kill -INT 1; false",
    ):
        assert not (await sandbox.exec(command)).ok, command
    assert (await sandbox.exec("echo alive")).stdout == b"alive\n"


async def test_the_host_is_hidden(sandbox: Sandbox) -> None:
    result = await sandbox.exec("ls / /home /root /run /tmp; cat /etc/shadow /etc/sudoers; true")
    assert result.stderr.count(b"No such file") == 2
    for name in os.listdir("/home"):
        assert name.encode() not in result.stdout.split()
    listed = await sandbox.exec(["ls", SOURCE])
    assert not listed.ok
    env = await sandbox.exec("cat /proc/1/environ /proc/*/environ | tr '\\0' '\\n'")
    assert b"RAMIFY_HOME" not in env.stdout
    assert (await sandbox.exec("python3 -c 'print(6*7)'")).stdout == b"42\n"


async def test_nannies_killed_by_the_agent_take_their_command_along(sandbox: Sandbox) -> None:
    marker = f"77.{os.getpid()}"
    result = await sandbox.exec(f"sleep {marker} & setsid sleep {marker} & kill -9 $PPID; sleep 9")
    assert result.exit_code == 137
    assert await gone(f"sleep\0{marker}")
    assert (await sandbox.exec("echo alive")).stdout == b"alive\n"


async def test_flood_is_bounded(sandbox: Sandbox) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await sandbox.exec("yes | head -c 1073741824", output_limit=MIB)
    assert len(result.stdout) == MIB
    assert result.stdout_dropped == 1024 * MIB - MIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


async def test_frozen_state_has_independent_children(provider: LocalProvider) -> None:
    parent = await provider.create(HOST)
    await parent.exec("mkdir /app && echo parent > /app/x && rm /etc/hostname && echo $$ > /tmp/p")
    image = await parent.freeze()
    await parent.teardown()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(provider.create(HOST, image)) for _ in range(16)]
    children = [task.result() for task in tasks]
    async with asyncio.TaskGroup() as group:
        for number, child in enumerate(children):
            group.create_task(child.exec(f"echo {number} >> /app/x"))
    for number, child in enumerate(children):
        assert (await child.exec("cat /app/x")).stdout == f"parent\n{number}\n".encode()
    grandchild = await provider.create(HOST, await children[3].freeze())
    assert (await grandchild.exec("cat /app/x")).stdout == b"parent\n3\n"
    same = await provider.create(HOST, image)
    again = await same.freeze()
    assert again.parent == image.id
    with pytest.raises(SandboxLostError):
        await same.exec("true")


@pytest.mark.skipif(os.geteuid() != 0, reason="limits need a cgroup that this user may write")
async def test_limits_hold(provider: LocalProvider) -> None:
    limits = Limits(memory_mb=64, pids=40, cpus=0.2, disk_mb=20)
    sandbox = await provider.create(HOST.__class__(host_root=True, limits=limits))
    hog = await sandbox.exec(["python3", "-c", "x = bytearray(200 << 20); print(len(x))"])
    assert (hog.exit_code, hog.oom_killed) == (137, True)
    bomb = await sandbox.exec("for i in $(seq 60); do sleep 5 & done; wait", kill_leftovers=True)
    assert b"fork" in bomb.stderr
    spin = (
        "import time; t = time.time()\nwhile time.process_time() < 0.2: pass\nprint(time.time()-t)"
    )
    assert float((await sandbox.exec(["python3", "-c", spin])).stdout) > 0.5
    big = await sandbox.exec("head -c 30000000 /dev/zero > /tmp/one; stat -c %s /tmp/one")
    # The file ends at the limit; with all else it is above, so any command may be killed by now.
    assert b"larger than" in big.stderr or b"File size" in big.stderr or b"more disk" in big.stderr
    assert not big.stdout or int(big.stdout) <= 20 * MIB
    many = await sandbox.exec(
        "rm /tmp/one; i=0; while :; do i=$((i+1)); head -c 4000000 /dev/zero > /tmp/f$i; done",
        timeout_sec=20,
    )
    assert many.exit_code == 137
    assert b"more disk" in many.stderr


async def test_unprivileged_users_and_lockdown(provider: LocalProvider) -> None:
    sandbox = await provider.create(SandboxSpec(host_root=True, lockdown=True))
    status = (await sandbox.exec("grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status")).stdout
    assert [line.split()[1] for line in status.splitlines()] == [b"0" * 16, b"1", b"2"]
    assert not (await sandbox.exec("unshare -U true")).ok
    threads = "import threading as t; a = t.Thread(target=print, args=(5,)); a.start(); a.join()"
    assert (await sandbox.exec(["python3", "-c", threads])).stdout == b"5\n"


async def test_allowlist_goes_through_the_proxy_only(provider: LocalProvider) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    allowed = (f"127.0.0.1:{port}",)
    policy = NetworkPolicy(mode=NetworkMode.ALLOWLIST, allowed_hosts=allowed)
    sandbox = await provider.create(SandboxSpec(host_root=True, network=policy))
    fetch = (
        "import os, urllib.request as u; os.environ['no_proxy'] = '';"
        "print(u.build_opener(u.ProxyHandler({'http': os.environ['http_proxy']}))"
        ".open('http://%s/').read())"
    )
    result = await sandbox.exec(["python3", "-c", fetch % f"127.0.0.1:{port}"])
    assert result.stdout == b"b'hi'\n", result
    denied = await sandbox.exec(["python3", "-c", fetch % f"127.0.0.1:{port + 1}"])
    assert b"403" in denied.stderr
    direct = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
    assert b"refused" in (await sandbox.exec(["python3", "-c", direct])).stderr
    server.close()
    await server.wait_closed()


async def test_terminal_session(sandbox: Sandbox) -> None:
    process = await sandbox.spawn("stty size; read x; echo got $x; tty", pty=PtySize(33, 101))
    await process.write(b"word\n")
    output = b""
    while b"pts" not in output:
        output += await process.read()
    assert b"33 101" in output
    assert b"got word" in output
    assert await process.wait() == 0
    assert await process.read() == b""
    await process.aclose()


async def test_cancelled_create_leaves_nothing(provider: LocalProvider, tmp_path: Path) -> None:
    await (await provider.create(HOST)).teardown()
    engine = next((tmp_path / "home" / "run").iterdir()).name
    for delay in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
        task = asyncio.create_task(provider.create(HOST))
        await asyncio.sleep(delay)
        task.cancel()
        try:
            await (await task).teardown()
        except asyncio.CancelledError:
            continue
    await asyncio.sleep(0.1)
    assert not cgroups_with(engine)
    left = {p.name for p in (tmp_path / "home" / "run" / engine).iterdir() if p.is_dir()}
    assert not {name for name in left if not name.startswith("map-")}


async def test_cancelled_exec_kills_its_command(sandbox: Sandbox) -> None:
    marker = f"88.{os.getpid()}"
    task = asyncio.create_task(sandbox.exec(f"setsid sleep {marker} & sleep {marker}"))
    assert await until(lambda: len(processes_with(f"sleep\0{marker}")) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes_with(f"sleep\0{marker}")


async def test_long_commands_and_large_environments_pass(sandbox: Sandbox) -> None:
    text = "x" * 120_000
    result = await sandbox.exec(["printf", "%s", text], env={"BIG": "y" * 100_000})
    assert result.stdout == text.encode()


ENGINE = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import BareProvider, LocalProvider, cgroups

async def main():
    home, marker, kind = sys.argv[1:]
    made = {"bare": lambda: BareProvider(Path(home), allow_unenforced=True)}
    provider = made.get(kind, lambda: LocalProvider(Path(home)))()
    for _ in range(2):
        sandbox = await provider.create(SandboxSpec(host_root=True))
        await sandbox.spawn(f"setsid sleep {marker} & trap '' TERM HUP; sleep {marker}; sleep 9")
    print((await sandbox.exec("id -u")).stdout.decode().strip(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["engine", "spawner", "both"])
@pytest.mark.parametrize("kind", ["local", "bare"])
async def test_killed_engine_leaves_nothing(tmp_path: Path, kind: str, victim: str) -> None:
    marker = f"99.{os.getpid()}{len(kind)}{len(victim)}"
    home = tmp_path / "home"
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENGINE, str(home), marker, kind),
        stdout=asyncio.subprocess.PIPE,
    )
    assert engine.stdout is not None
    assert await engine.stdout.readline()
    assert await until(lambda: len(processes_with(f"sleep\0{marker}")) == 4)
    run = home / ("bare" if kind == "bare" else "run")
    name = next(run.iterdir()).name
    spawner = next(pid for pid, (parent, _) in process_table().items() if parent == engine.pid)
    for pid in {"engine": [engine.pid], "spawner": [spawner]}.get(victim, [engine.pid, spawner]):
        os.kill(pid, signal.SIGKILL)
    assert await gone(f"sleep\0{marker}"), "processes outlived the engine"
    if engine.returncode is None and victim == "spawner":
        engine.kill()
    await engine.wait()
    if victim == "engine":
        assert await until(lambda: not run.joinpath(name).exists())
    else:  # the spawner could not clean up, so the next engine does
        next_engine = BareProvider(home) if kind == "bare" else LocalProvider(home)
        assert await next_engine.sweep() >= 1
        await next_engine.aclose()
    assert not run.joinpath(name).exists()
    assert not cgroups_with(name)
    assert not is_mounted(name)


async def test_bare_refuses_what_it_cannot_enforce(tmp_path: Path) -> None:
    strict = BareProvider(tmp_path)
    with pytest.raises(UnsupportedError, match="network"):
        await strict.create(HOST)
    loose = BareProvider(tmp_path, allow_unenforced=True)
    sandbox = await loose.create(SandboxSpec(host_root=True, workdir="/app"))
    assert isinstance(sandbox, LocalSandbox)
    result = await sandbox.exec("pwd; echo $RAMIFY_ROOT; echo 1 > $RAMIFY_ROOT/app/out")
    place, root = result.stdout.decode().split()
    assert place == f"{root}/app"
    report = await sandbox.download("/app/out", tmp_path / "out")
    assert (report.files, (tmp_path / "out").read_text()) == (1, "1\n")
    await loose.aclose()
    await strict.aclose()
    assert not os.listdir(tmp_path / "bare")


ROOTLESS = """
import asyncio, os, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider

async def main():
    provider = LocalProvider(Path(sys.argv[1]))
    print((await provider.probe()).mode)
    sandbox = await provider.create(SandboxSpec(host_root=True))
    result = await sandbox.exec("id -u; echo new > /etc/new; cat /etc/new; touch /usr/local/bin/x")
    print(result.stdout.decode().split(), result.exit_code)
    child = await provider.create(SandboxSpec(host_root=True), await sandbox.freeze())
    print((await child.exec("cat /etc/new")).stdout.decode().strip())
    print((await child.exec("true", user="daemon")).exit_code)
    await provider.aclose()
    print(sorted(os.listdir(Path(sys.argv[1]) / "run")))

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_unprivileged_user_gets_a_rootless_sandbox(tmp_path: Path) -> None:
    """In a mount namespace of its own, where that user can reach this interpreter."""
    home = Path("/var/tmp") / f"ramify-rootless-{os.getpid()}"
    home.mkdir()
    os.chown(home, 65534, 65534)
    hidden = [p for p in (Path.home(), *Path.home().parents) if p.stat().st_mode & 0o005 != 0o005]
    steps = ["mount --make-rprivate /"]
    needed = sorted({sys.base_prefix, sys.prefix, *filter(os.path.isdir, sys.path)})
    for number, place in enumerate(needed):
        if hidden and Path(place).is_relative_to(hidden[0]):
            stash = tmp_path / str(number)
            stash.mkdir()
            steps.insert(1, f"mount --bind {place} {stash}")
            steps.append(f"mkdir -p {place}; mount --bind {stash} {place}")
    if hidden:
        count = sum("--bind" in step and "mkdir" not in step for step in steps)
        steps.insert(1 + count, f"mount -t tmpfs -o mode=755 tmpfs {hidden[0]}")
    steps.append(
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME={home}"
        f' PYTHONPATH={":".join(p for p in sys.path if p)} {sys.executable} -c "$CODE" {home}'
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", "\n".join(steps)),
        env={**os.environ, "CODE": ROOTLESS},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    for path in sorted(home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    home.rmdir()
    lines = output.decode().splitlines()
    assert len(lines) == 5, errors.decode()
    assert lines[0] == "rootless"
    assert lines[1] == "['0', 'new'] 0"
    assert lines[2] == "new"
    assert lines[3] in ("0", "126")  # 126: only root exists in a map of one id
    assert lines[4] == "[]"


async def test_the_engines_environment_stays_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespaces_available: None
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    provider = LocalProvider(tmp_path / "home")
    try:
        await provider.create(HOST)
        table = process_table()
        mine = [pid for pid, (parent, _) in table.items() if parent == os.getpid()]
        below = [pid for pid, (parent, _) in table.items() if parent in mine]
        assert below
        for pid in (*mine, *below):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
                told = Path(f"/proc/{pid}/environ").read_bytes()  # noqa: ASYNC240
                assert b"sk-secret" not in told
    finally:
        await provider.aclose()
