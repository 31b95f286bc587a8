"""Runs what tests ask for as a user of its own: standard library, Python 3.8 syntax.

The code that it runs has the same user and may do to it what it likes: it holds nothing that this
code must not see, and what it answers is nothing but that code's own answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from typing import Any

_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_MAX_REQUEST = 32 * 1024 * 1024
_CHUNK = 1 << 16
_FILE_BYTES = 256 * 1024 * 1024
_LEAST_ROOM = 64 * 1024
_LOOK_SEC = 0.05
"""How often we look whether a process that says nothing has ended."""


class _FailedError(Exception):
    """Arguments: kind, message, name of the exception's type."""


def _prctl(option: int) -> None:
    try:
        import ctypes
    except ImportError:  # a Python that was built without it
        return
    ctypes.CDLL(None).prctl(option, 1, 0, 0, 0)


def _confine(request: dict[str, Any]) -> None:
    """Bounds on the process that runs the code."""
    memory = int(request["memory_mb"]) * 1024 * 1024
    seconds = int(request["timeout_sec"]) + 2
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _call(request: dict[str, Any], workdir: str) -> dict[str, Any]:
    file, function, arguments = request["call"]
    path = os.path.join(workdir, file)
    if not os.path.isfile(path):
        raise _FailedError("missing", f"there is no file {file}", "")
    sys.path[:0] = [os.path.dirname(path), workdir]
    spec = importlib.util.spec_from_file_location(
        os.path.splitext(os.path.basename(path))[0].replace("-", "_"), path
    )
    if spec is None or spec.loader is None:
        raise _FailedError("missing", f"{file} is no Python file", "")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    target: Any = module
    for part in function.split("."):
        if not hasattr(target, part):
            raise _FailedError("missing", f"{file} has no {function}", "")
        target = getattr(target, part)
    value = target(*arguments)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _FailedError("not_json", f"{function} gave no JSON value: {error}", "") from None
    if len(text) > request["output_limit"]:
        raise _FailedError("too_large", f"{function} gave {len(text)} bytes", "")
    return {"value": text}


def _child(request: dict[str, Any], workdir: str, pipe: int) -> None:
    """In a process of its own: call, and write the answer. Never returns."""
    try:
        _confine(request)
        answer = _call(request, workdir)
    except _FailedError as error:
        answer = {"failed": list(error.args)}
    except BaseException as error:  # SystemExit too: whatever it was, the test hears of it
        answer = {"failed": ["raised", f"{type(error).__name__}: {error}", type(error).__name__]}
    data = json.dumps(answer).encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def _program(request: dict[str, Any], streams: tuple[int, int, int]) -> None:
    """In a process of its own: become the program. Never returns."""
    try:
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        _confine(request)
        argv = request["run"][0]
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{request['run'][0][0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _gather(
    pipes: dict[int, bytearray], limit: int, deadline: float, writer: int | None = None
) -> None:
    """Read pipes to their ends, or until the process `writer` has ended and all of it is read.

    Raises _FailedError when time or room is up.
    """
    open_pipes, ended = set(pipes), False
    while open_pipes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _FailedError("timeout", "the isolated code did not finish in time", "")
        ready = select.select(list(open_pipes), [], [], min(left, _LOOK_SEC))[0]
        if not ready:
            if ended:  # what it left behind still holds the pipe
                return
            ended = writer is not None and os.waitpid(writer, os.WNOHANG)[0] == writer
        for fd in ready:
            data = os.read(fd, _CHUNK)
            if not data:
                open_pipes.discard(fd)
            pipes[fd] += data
            if len(pipes[fd]) > limit:
                raise _FailedError("too_large", "the isolated code gave too much output", "")


def _handle_call(request: dict[str, Any], workdir: str) -> dict[str, Any]:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        kept = os.dup2(theirs, 3, inheritable=False)
        os.closerange(4, 256)
        _child(request, workdir, kept)
    os.close(theirs)
    found: dict[int, bytearray] = {ours: bytearray()}
    deadline = time.monotonic() + float(request["timeout_sec"])
    # A value as text within text: each of its bytes may take six.
    _gather(found, 6 * int(request["output_limit"]) + _LEAST_ROOM, deadline, pid)
    try:
        return json.loads(bytes(found[ours]))
    except ValueError:
        raise _FailedError("crashed", "the isolated process ended without an answer", "") from None


def _handle_run(request: dict[str, Any]) -> dict[str, Any]:
    out, out_theirs = os.pipe()
    err, err_theirs = os.pipe()
    with tempfile.TemporaryFile() as given:
        given.write(request["run"][1].encode("latin-1"))
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _program(request, (given.fileno(), out_theirs, err_theirs))
    os.close(out_theirs)
    os.close(err_theirs)
    found: dict[int, bytearray] = {out: bytearray(), err: bytearray()}
    deadline = time.monotonic() + float(request["timeout_sec"])
    _gather(found, int(request["output_limit"]), deadline)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            raise _FailedError("timeout", "the isolated program did not finish in time", "")
        time.sleep(0.002)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    texts = {
        name: bytes(found[fd]).decode("latin-1") for name, fd in (("stdout", out), ("stderr", err))
    }
    return {"code": code, **texts}


def _below() -> list[int]:
    """Processes that are children of this one; orphans below it become such."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            if int(fields[1]) == os.getpid():
                found.append(int(name))
    return found


def _end_all() -> None:
    """Kill whatever the call left behind."""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        for pid in _below():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:  # it has ended meanwhile
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        time.sleep(0.002)


def _serve(line: socket.socket, workdir: str, user: int) -> None:
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", data)[1] != user:
        return
    try:
        with line.makefile("rb") as file:
            size = struct.unpack("!I", file.read(4))[0]
            if size > _MAX_REQUEST:
                raise _FailedError("too_large", "the arguments are too large", "")
            request: dict[str, Any] = json.loads(file.read(size))
        answer = _handle_call(request, workdir) if "call" in request else _handle_run(request)
    except _FailedError as error:
        answer = {"failed": list(error.args)}
    _end_all()
    reply = json.dumps(answer).encode()
    line.sendall(struct.pack("!I", len(reply)) + reply)


def main() -> None:
    """Listen in a directory of this user's own, say where, and serve until killed."""
    wanted: dict[str, Any] = json.loads(sys.stdin.readline())
    os.umask(0o022)
    _prctl(_PR_SET_NO_NEW_PRIVS)
    place = tempfile.mkdtemp(prefix="ramify-calls-")
    home = tempfile.mkdtemp(prefix="ramify-code-")
    os.chmod(place, 0o755)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.environ.update(HOME=home, TMPDIR=home)
    tempfile.tempdir = home
    os.chdir(wanted["workdir"])
    path = os.path.join(place, "calls")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(path)
        os.chmod(path, 0o666)
        door.listen(64)
        sys.stdout.write(path + "\n")
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # nobody reads what comes later
            os.dup2(null, number)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            line = door.accept()[0]
            if os.fork() == 0:
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _prctl(_PR_SET_CHILD_SUBREAPER)
                try:
                    with line:
                        _serve(line, wanted["workdir"], wanted["tests_uid"])
                finally:
                    os._exit(0)
            line.close()


if __name__ == "__main__":
    main()
