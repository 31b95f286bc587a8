"""Attacks on the sandbox: numbers, memory, time, sockets, clocks, and the engine's own link (S, A).

Undefended is a harness that runs the agent's program as a process of its own on the host, in a
directory for it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from attack_cases import BLOCKED, Attack
from attack_ground import Ground

from ramify.contracts.sandbox import Limits, NetworkMode, NetworkPolicy, Sandbox, SandboxSpec


@asynccontextmanager
async def new_sandbox(ground: Ground, **how: object) -> AsyncGenerator[Sandbox]:
    spec: SandboxSpec = msgspec.structs.replace(ground.field.spec, **how)
    sandbox = await ground.field.provider.create(spec, ground.field.image)
    try:
        await sandbox.exec("mkdir -p /app", user="root", cwd="/")
        yield sandbox
    finally:
        await sandbox.teardown()


def on_host(ground: Ground, script: str, **env: str) -> str:
    """What a harness without a sandbox hears of a script."""
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=ground.loot,
        capture_output=True,
        timeout=30,
        env={"PATH": os.environ["PATH"], "HOST": str(ground.host), **env},
        check=False,
    )
    return done.stdout.decode(errors="replace")


def _bounded(id: str, shows: str, script: str, paid: str, limits: Limits, modest: str) -> Attack:
    """A script that takes more than it may have, and says `paid` where it got it."""

    async def naive(ground: Ground) -> bool:
        return paid in await asyncio.to_thread(on_host, ground, script)

    async def ramify(ground: Ground) -> tuple[str, object]:
        async with new_sandbox(ground, limits=limits) as sandbox:
            done = await sandbox.exec(script, user="root", cwd="/app", timeout_sec=20)
            alive = await sandbox.exec("echo alive", cwd="/")
        taken = paid.encode() in done.stdout or alive.stdout != b"alive\n"
        return ("taken" if taken else BLOCKED), (done, alive)

    async def honest(ground: Ground) -> float:
        async with new_sandbox(ground, limits=limits) as sandbox:
            return float((await sandbox.exec(modest, user="root", cwd="/app")).ok)

    return Attack(id, shows, (BLOCKED,), naive, ramify, honest)


FORKS = """python3 - <<'END'
import os, time
pids = []
try:
    for _ in range(120):
        pid = os.fork()
        if pid == 0:
            time.sleep(20); os._exit(0)
        pids.append(pid)
    print("all of them")
except OSError:
    print("no more")
for pid in pids:
    os.kill(pid, 9)
END
"""
MEMORY = "python3 -c \"x = b'x' * (300 << 20); print(len(x), 'bytes')\""
FEW = "for i in 1 2 3 4 5; do sleep 0.05 & done; wait"

CONNECT = """python3 - <<'END'
import os, socket
for kind, place in ((socket.AF_UNIX, os.environ["HOST"] + "/engine.sock"),
                    *((socket.AF_INET, (h, int(os.environ["PORT"])))
                      for h in os.environ["HOSTS"].split())):
    try:
        with socket.socket(kind) as line:
            line.settimeout(1.0)
            line.connect(place)
            line.sendall(b"GET /secret HTTP/1.0\\r\\n\\r\\n")
            print(place, line.recv(200))
    except OSError as error:
        print(place, error)
END
"""


@asynccontextmanager
async def _secret_services(ground: Ground) -> AsyncGenerator[dict[str, str]]:
    """The host's own services, on a socket and on every address of it; each tells the secret."""

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.0 200 OK\r\n\r\n{ground.marker}".encode())
        await writer.drain()
        writer.close()

    path = ground.host / "engine.sock"
    unix = await asyncio.start_unix_server(tell, path)
    tcp = await asyncio.start_server(tell, "0.0.0.0", 0)
    try:
        path.chmod(0o777)
        port = tcp.sockets[0].getsockname()[1]
        yield {"HOST": str(ground.host), "PORT": str(port), "HOSTS": " ".join(addresses())}
    finally:
        for server in (unix, tcp):
            server.close()
            await server.wait_closed()
        path.unlink(missing_ok=True)


def addresses() -> list[str]:
    """Addresses of this host that something inside might try."""
    found = {"127.0.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        try:
            line.connect(("192.0.2.1", 9))  # nothing is sent: it only says which address is ours
            found.add(line.getsockname()[0])
        except OSError:  # a host without a network has no other address
            pass
    routes = Path("/proc/net/fib_trie").read_text().split()
    found |= {word for word in routes if word.startswith("172.17.0.1")}
    return sorted(found)


def _reaches(id: str, shows: str, mode: NetworkMode) -> Attack:
    async def naive(ground: Ground) -> bool:
        async with _secret_services(ground) as env:
            return ground.marker in await asyncio.to_thread(on_host, ground, CONNECT, **env)

    async def ramify(ground: Ground) -> tuple[str, object]:
        async with (
            _secret_services(ground) as env,
            new_sandbox(ground, network=NetworkPolicy(mode)) as sandbox,
        ):
            done = await sandbox.exec(CONNECT, user="root", env=env, cwd="/app", timeout_sec=30)
        reached = ground.marker.encode() in done.stdout
        return ("reached" if reached or b"engine.sock" not in done.stdout else BLOCKED), done

    async def honest(ground: Ground) -> float:
        own = (
            '(python3 -m http.server 8431 >/dev/null 2>&1 &) ; python3 -c "import socket, time\n'
            "for n in range(100):\n"
            "    try: socket.create_connection(('127.0.0.1', 8431)); break\n"
            '    except OSError: time.sleep(0.05)\nelse: raise SystemExit(1)"'
        )
        async with new_sandbox(ground) as sandbox:
            return float((await sandbox.exec(own, user="root", cwd="/app", timeout_sec=20)).ok)

    return Attack(id, shows, (BLOCKED,), naive, ramify, honest)


def _alive(word: str) -> list[int]:
    """Processes of the host whose command line holds a word."""
    found: list[int] = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            try:
                if word.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except OSError:  # it has ended meanwhile
                continue
    return found


def _outlives(id: str, shows: str, script: str) -> Attack:
    """A script that lives on after its time is up. `WORD` in it is how it is known."""

    async def naive(ground: Ground) -> bool:
        word = ground.marker.replace("marker", "naive")
        command = ["sh", "-c", script.replace("WORD", word)]
        process = await asyncio.to_thread(
            subprocess.Popen, command, cwd=ground.loot, start_new_session=True
        )
        try:
            await asyncio.sleep(0.4)
            process.terminate()
            await asyncio.sleep(0.2)
            return bool(_alive(word))
        finally:
            for pid in _alive(word):
                os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)

    async def ramify(ground: Ground) -> tuple[str, object]:
        word = ground.marker.replace("marker", "ours")
        async with new_sandbox(ground) as sandbox:
            await sandbox.exec(
                script.replace("WORD", word),
                user="root", cwd="/app", timeout_sec=0.4, kill_leftovers=True,
            )  # fmt: skip
            left = await asyncio.to_thread(_alive, word)
        return ("lives on" if left else BLOCKED), left

    async def honest(ground: Ground) -> float:
        async with new_sandbox(ground) as sandbox:
            done = await sandbox.exec("sleep 0.1; echo done", cwd="/app", timeout_sec=10)
            return float(done.stdout == b"done\n")

    return Attack(id, shows, (BLOCKED,), naive, ramify, honest)


def _inside(
    id: str, shows: str, script: str, undefended: str, paid: Callable[[str], bool], modest: str
) -> Attack:
    """A script as root inside; `paid` looks at what it says. `undefended` runs it on the host."""

    async def naive(ground: Ground) -> bool:
        if script is CLOCK and not _sets_clocks():
            pytest.skip("nobody on this machine may set its clock, defended or not")
        (ground.loot / "agent.sh").write_text(script)
        return paid(await asyncio.to_thread(on_host, ground, undefended))

    async def ramify(ground: Ground) -> tuple[str, object]:
        async with new_sandbox(ground) as sandbox:
            done = await sandbox.exec(script, user="root", cwd="/app", timeout_sec=20)
            after = await sandbox.exec("echo still; exit 7", cwd="/")
        said = done.stdout.decode(errors="replace") + f"code={done.exit_code}\n"
        told = (after.stdout, after.exit_code) == (b"still\n", 7)
        return (BLOCKED if told and not paid(said) else "believed"), (done, after)

    async def honest(ground: Ground) -> float:
        async with new_sandbox(ground) as sandbox:
            return float((await sandbox.exec(modest, user="root", cwd="/app")).ok)

    return Attack(id, shows, (BLOCKED,), naive, ramify, honest)


HARNESS = "sh agent.sh; echo code=$?"
FORGE = (
    "for f in /proc/$PPID/fd/1 /proc/1/fd/1 /proc/1/fd/3 /proc/1/fd/4 /proc/1/fd/5; do "
    "echo code=0 > $f; done 2>/dev/null; kill -9 $PPID 1 2>/dev/null; exit 3"
)


CLOCK = """python3 - <<'END'
import ctypes
# What says how long a tick is, is set to what it is: whoever may do that may set the clock.
class Timex(ctypes.Structure):
    _fields_ = [("modes", ctypes.c_uint), ("more", ctypes.c_long * 40)]
libc, now = ctypes.CDLL(None), Timex()
libc.adjtimex(ctypes.byref(now))
now.modes = 0x4000
print("code=turned" if libc.adjtimex(ctypes.byref(now)) >= 0 else "no")
END
"""


def _sets_clocks() -> bool:
    """Whether we have CAP_SYS_TIME."""
    lines = Path("/proc/self/status").read_text().splitlines()
    powers = next(line for line in lines if line.startswith("CapEff"))
    return bool(int(powers.split()[1], 16) >> 25 & 1)


def _last_code(said: str) -> bool:
    """Whoever reads exit codes from the output reads 0."""
    codes = [line for line in said.splitlines() if line.startswith("code=")]
    return bool(codes) and codes[-1] == "code=0"


ATTACKS: list[Attack] = [
    _bounded("S07", "a fork bomb", FORKS, "all of them", Limits(pids=60), FEW),
    _bounded("S08", "300 MiB of memory", MEMORY, "bytes", Limits(memory_mb=128),
             "python3 -c \"x = b'x' * (16 << 20)\""),
    _reaches("S12", "sockets of the host, and its addresses, from a closed network",
             NetworkMode.NONE),
    _reaches("S13", "the same from an open network", NetworkMode.OPEN),
    _outlives("S16", "deaf to SIGTERM", "trap '' TERM INT HUP; : WORD; while :; do sleep 1; done"),
    _outlives("S16a", "a daemon in a session of its own, its parents gone",
              "setsid sh -c 'setsid sh -c \": WORD; sleep 60\" & sleep 60' & sleep 60"),
    _outlives("S16b", "stopped, with a child that is not",
              "sh -c ': WORD; sleep 60' & kill -STOP $$; sleep 60"),
    _inside("A01", "forged answers on the engine's link, and its other end killed", FORGE,
            HARNESS, _last_code, "true"),
    _inside("E06", "the clock is turned", CLOCK, "sh agent.sh",
            lambda said: "code=turned" in said, "date +%Y"),
]  # fmt: skip
