"""Starting our helper processes: the spawner of an engine, and the probe.

They run with this interpreter, isolated (`-I -S`), and import only our standard-library-only
modules: the packages above them are stood in for, so that nothing else is loaded.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from ramify.contracts.errors import SandboxStartError
from ramify.planes.sandbox.local import wire
from ramify.planes.sandbox.local.probe import Machine

_SOURCE = str(Path(__file__).resolve().parents[4])
_BOOT = """
import sys, types
for name in ("ramify", "ramify.planes", "ramify.planes.sandbox", "ramify.planes.sandbox.local"):
    package = types.ModuleType(name)
    package.__path__ = [{source!r} + "/" + name.replace(".", "/")]
    sys.modules[name] = package
from ramify.planes.sandbox.local.{module} import main
main(*{arguments!r})
"""
_START_SEC = 20.0
_LOCK = "lock"


def _argv(boot: int) -> list[str]:
    """The program comes through a pipe, for a command line is seen inside sandboxes."""
    code = f"import os; exec(os.read({boot}, 65536))"
    return [sys.executable, "-I", "-S", "-c", code, "ramify-sandbox"]


def _program(module: str, *arguments: str) -> int:
    """The reading end of a pipe that holds the program."""
    source = _BOOT.format(source=_SOURCE, module=module, arguments=arguments)
    read_end, write_end = os.pipe()
    os.write(write_end, source.encode())
    os.close(write_end)
    return read_end


async def probe() -> Machine:
    """Find this machine's mode, in a process of its own. Raises SandboxStartError."""
    program = _program("probe")
    try:
        process = await asyncio.create_subprocess_exec(
            *_argv(program),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(program,),
        )
    finally:
        os.close(program)
    try:
        async with asyncio.timeout(_START_SEC):
            output, errors = await process.communicate()
    finally:  # left to itself it would be reaped by whoever comes first, and its watcher complains
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode != 0:
        raise SandboxStartError(f"the sandbox probe failed: {errors.decode(errors='replace')}")
    mode, user_map, detail, remedy = json.loads(output)
    return Machine(mode, tuple(user_map) if user_map else None, detail, remedy)


def make_engine_directory(runs: Path) -> tuple[Path, int]:
    """A directory for one engine, and the descriptor of its lock, held from the start."""
    runs.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex[:12]
    hidden = runs / f".{name}"
    hidden.mkdir(mode=0o711)
    lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    hidden.rename(runs / name)
    return runs / name, lock


def dead_engines(runs: Path) -> list[Path]:
    """Directories whose engine and spawner are both gone: nobody holds the lock."""
    dead: list[Path] = []
    if not runs.is_dir():
        return dead
    for place in runs.iterdir():
        try:
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            if not place.name.startswith("."):  # else it is being made at this moment
                dead.append(place)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead.append(place)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
    return dead


class Spawner:
    """The engine's end of its spawner. Make it with `start_spawner`."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, place: Path) -> None:
        self._process, self._sock = process, sock
        self.place = place
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[asyncio.Future[tuple[str, str]]]] = {}
        self._lost = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def lost(self) -> bool:
        """True once the spawner is gone."""
        return self._lost

    def send(self, message: wire.Message, fds: list[int] | None = None) -> None:
        """Send a request. Raises SandboxStartError when the spawner is gone."""
        try:
            wire.send(self._sock, message, fds or [])
        except OSError as error:
            raise SandboxStartError(f"the sandbox spawner does not answer: {error}") from error

    def expect(self, name: str) -> asyncio.Future[tuple[str, str]]:
        """The next (event, text) about `name`; ("lost", "") when the spawner goes first."""
        future: asyncio.Future[tuple[str, str]] = self._loop.create_future()
        if self._lost:
            future.set_result(("lost", ""))
        else:
            self._waiting.setdefault(name, []).append(future)
        return future

    def _readable(self) -> None:
        while True:
            try:
                received = wire.receive(self._sock)
            except BlockingIOError:
                return
            if received is None:
                self._end()
                return
            message, _fds = received
            for future in self._waiting.pop(message["name"], []):
                if not future.done():
                    future.set_result((message["event"], message["text"]))

    def _end(self) -> None:
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_result(("lost", ""))
        self._waiting.clear()

    async def aclose(self) -> None:
        """Let the spawner end everything and go. Waits until it has gone (bounded)."""
        self._end()
        try:
            await asyncio.to_thread(self._process.wait, 30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


def _plain_environment() -> dict[str, str]:
    """What an interpreter needs to run. The engine's secrets have no business near a sandbox."""
    return {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}


def _popen(place: Path, mode: str, fd: int, lock: int) -> subprocess.Popen[bytes]:
    program = _program("spawner", str(fd), str(place), mode, str(os.getpid()))
    try:
        return subprocess.Popen(
            _argv(program),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(fd, lock, program),
            start_new_session=True,
            cwd=place,
            env=_plain_environment(),
        )
    finally:
        os.close(program)


async def start_spawner(runs: Path, mode: str) -> Spawner:
    """Start the spawner of this engine. Raises SandboxStartError."""
    place, lock = make_engine_directory(runs)
    ours, theirs = wire.pair()
    try:
        process = await asyncio.to_thread(_popen, place, mode, theirs.fileno(), lock)
    except OSError as error:
        ours.close()
        shutil.rmtree(place)
        raise SandboxStartError(f"cannot start the sandbox spawner: {error}") from error
    finally:
        theirs.close()
        os.close(lock)
    ours.setblocking(False)
    spawner = Spawner(process, ours, place)
    try:
        async with asyncio.timeout(_START_SEC):
            event, _text = await spawner.expect("")
    except BaseException:
        process.kill()
        await spawner.aclose()
        raise
    if event != "ready":
        await spawner.aclose()
        shutil.rmtree(place, ignore_errors=True)
        raise SandboxStartError("the sandbox spawner ended at its start (see standard error)")
    return spawner
