"""For tests: code that is not to be trusted runs in a process of its own.

    from ramify_tests import isolated_call

    def test_median():
        assert isolated_call("stats.py", "median", [3, 1, 2]) == 2

The process belongs to another user: it cannot trace or signal the tests, nor read them. Only JSON
crosses, so what comes back is a plain value, whatever class the code made it of. Standard library,
Python 3.8 syntax.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, cast

__all__ = ["CallFailed", "Completed", "isolated_call", "isolated_run"]

_SLACK_SEC = 10.0
_MAX_ANSWER = 32 * 1024 * 1024

_broker: list[tuple[str, int, str]] = []


class CallFailed(AssertionError):  # noqa: N818 (it reads as what happened)
    """The isolated code gave no value.

    `kind`: `raised` (then `type` names the exception), `missing` (no such file or function),
    `not_json`, `too_large`, `timeout` or `crashed`.
    """

    def __init__(self, kind: str, message: str, type_name: str = "") -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.type = kind, message, type_name


class Completed(NamedTuple):
    """How an isolated program ended; killed by signal n is 128 + n."""

    exit_code: int
    stdout: bytes
    stderr: bytes


def connect(path: str, uid: int, workdir: str) -> None:
    """Where the broker listens and which user it is. For the runner, not for tests."""
    _broker[:] = [(path, uid, workdir)]


def isolated_call(
    file: str,
    function: str,
    *arguments: Any,
    timeout_sec: float = 10.0,
    memory_mb: int = 2048,
    output_limit: int = 8 * 1024 * 1024,
) -> Any:
    """The value of a function of a Python file, called in a process of its own.

    Args:
        file: the file, relative to the work directory or absolute.
        function: its name in the file; dots lead into classes and objects.
        arguments: plain JSON values.
        timeout_sec, memory_mb, output_limit: bounds on the call; the last in bytes of JSON.

    Raises: CallFailed, TypeError or ValueError (an argument that is no JSON).
    """
    answer = _ask(
        {
            "call": [file, function, list(arguments)],
            "timeout_sec": timeout_sec,
            "memory_mb": memory_mb,
            "output_limit": output_limit,
        },
        timeout_sec,
    )
    try:
        return json.loads(answer["value"], parse_constant=_no_constant)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CallFailed("not_json", f"{function} of {file} gave no JSON value") from None


def isolated_run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout_sec: float = 10.0,
    memory_mb: int = 2048,
    output_limit: int = 8 * 1024 * 1024,
) -> Completed:
    """Run a program in the work directory, as the user of the isolated code.

    `output_limit` bounds standard output and error, each.

    Raises: CallFailed (`timeout`, `too_large`, `missing`, `crashed`).
    """
    answer = _ask(
        {
            "run": [list(argv), stdin.decode("latin-1")],
            "timeout_sec": timeout_sec,
            "memory_mb": memory_mb,
            "output_limit": output_limit,
        },
        timeout_sec,
    )
    code, out, err = answer.get("code"), answer.get("stdout"), answer.get("stderr")
    if type(code) is not int or type(out) is not str or type(err) is not str:
        raise CallFailed("crashed", f"{argv[0]} ended without a proper answer")
    return Completed(code, out.encode("latin-1", "replace"), err.encode("latin-1", "replace"))


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _ask(request: dict[str, Any], timeout_sec: float) -> dict[str, Any]:
    if not _broker or not _broker[0][0]:
        raise RuntimeError(
            "isolated calls need the test runner of Ramify: set `runner` in the task"
        )
    path, uid, _workdir = _broker[0]
    data = json.dumps(request, allow_nan=False).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(timeout_sec + _SLACK_SEC)
            line.connect(path)
            _check_peer(line, uid)
            line.sendall(struct.pack("!I", len(data)) + data)
            answer = _answer(line)
    except (OSError, EOFError) as error:
        raise CallFailed("crashed", f"the isolated process is gone ({error})") from None
    if "failed" in answer:
        failed: Any = answer["failed"]
        if not isinstance(failed, list) or len(cast("list[Any]", failed)) != 3:
            raise CallFailed("crashed", "the isolated process gave no proper answer")
        raise CallFailed(*(str(part)[:4000] for part in cast("list[Any]", failed)))
    return answer


def _check_peer(line: socket.socket, uid: int) -> None:
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", data)[1] != uid or uid == os.getuid():
        raise OSError("somebody else listens there")


def _answer(line: socket.socket) -> dict[str, Any]:
    size = struct.unpack("!I", _read(line, 4))[0]
    if size > _MAX_ANSWER:
        raise OSError("its answer is too large")
    try:
        answer: Any | None = json.loads(_read(line, size))
    except (ValueError, RecursionError):
        raise OSError("its answer is no JSON") from None
    if not isinstance(answer, dict):
        raise OSError("its answer is no object")
    return cast("dict[str, Any]", answer)


def _read(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = line.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("it hung up")
        data += part
    return data
