"""Processes that compare expressions, kept ready and replaced when they fail."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import InfraError

_PROGRAM = Path(__file__).with_name("math_worker.py")
_START_SEC = 120.0
_SPARE_SEC = 10.0
_MAX_REPLY = 65536


class Comparison(msgspec.Struct, frozen=True):
    """What a worker says. None: it had not got so far.

    Attributes:
        target, answer: whether each could be read.
        equal: whether they are equivalent.
        why: why not, where that is known.
        signal: what ended the comparison, or 0.
    """

    target: bool | None
    answer: bool | None
    equal: bool | None
    why: str
    signal: int


_decoder = msgspec.json.Decoder(Comparison)


class _Worker:
    """One process of math_worker.py. One caller at a time; blocks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        self._pending = b""
        try:
            self._line(_START_SEC)
        except BaseException:
            self.kill()
            raise

    def ask(self, request: dict[str, Any], timeout_sec: float) -> Comparison:
        """Raises InfraError: it does not answer."""
        stdin = self._process.stdin
        try:
            if stdin is None:
                raise OSError("it is closed")
            stdin.write(msgspec.json.encode(request) + b"\n")
            stdin.flush()
            return _decoder.decode(self._line(timeout_sec))
        except (OSError, msgspec.MsgspecError) as error:
            raise InfraError(f"the math worker failed: {error}") from error

    def _line(self, timeout_sec: float) -> bytes:
        stdout = self._process.stdout
        deadline = time.monotonic() + timeout_sec
        with selectors.DefaultSelector() as selector:
            if stdout is None:
                raise InfraError("the math worker is closed")
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise InfraError(f"the math worker did not answer within {timeout_sec:g} s")
                data = os.read(stdout.fileno(), _MAX_REPLY)
                if not data or len(self._pending) > _MAX_REPLY:
                    raise InfraError(
                        "the math worker ended, or says too much; is math-verify whole? "
                        "Try: pip install --force-reinstall 'ramify[math]'"
                    )
                self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def kill(self) -> None:
        """End it and all it started. Idempotent."""
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not written yet has no reader
                    stream.close()


class MathPool:
    """Workers that are idle; as many run as callers ask at once. They end with this object.

    Args:
        cpu_sec: seconds of processor time that one comparison may take.
        memory_mb: address space that it may use.
    """

    def __init__(self, cpu_sec: float, memory_mb: int) -> None:
        self._limits = {"cpu_sec": cpu_sec, "wall_sec": cpu_sec * 12, "memory_mb": memory_mb}
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._close = weakref.finalize(self, _kill_all, self._idle)

    def compare(self, target: str, answer: str) -> Comparison:
        """Compare; blocks. Raises InfraError: no worker can be had, or it does not answer."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _start()
        try:
            request = {"target": target, "answer": answer, **self._limits}
            said = worker.ask(request, self._limits["wall_sec"] + _SPARE_SEC)
        except BaseException:
            worker.kill()
            raise
        with self._lock:
            if self._close.alive:
                self._idle.append(worker)
                return said
        worker.kill()
        return said

    def close(self) -> None:
        """End all workers. Comparisons under way end theirs."""
        with self._lock:
            self._close()


def _start() -> _Worker:
    try:
        return _Worker()
    except OSError as error:
        raise InfraError(f"the math worker cannot be started: {error}") from error


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
