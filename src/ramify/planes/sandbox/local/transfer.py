"""Trees into and out of a sandbox, as streams through a helper inside."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from ramify.contracts.errors import SandboxError, SandboxLostError, TransferLimitError
from ramify.contracts.sandbox import TransferLimits, TransferReport
from ramify.planes.sandbox.archive import Extractor
from ramify.planes.sandbox.descent import NOT_FOUND, OK, TOO_MUCH, WRONG_TYPE, write_all
from ramify.planes.sandbox.local import wire
from ramify.planes.sandbox.local.control import Control, Reply
from ramify.planes.sandbox.packing import pack_tree

_CHUNK = 1024 * 1024
_T = TypeVar("_T")


class _Helper:
    """A helper process inside, working on our pipe. It ends before this context does."""

    def __init__(self, control: Control, message: wire.Message, fd: int) -> None:
        self._control = control
        self._done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._id = control.request(self._replied, message, (fd,))

    def _replied(self, reply: Reply) -> None:
        self._control.forget(self._id)
        if not self._done.done():
            self._done.set_result(reply)

    def cancel(self) -> None:
        if not self._done.done():
            self._control.order({"op": "cancel", "job": self._id})

    async def outcome(self) -> tuple[int, str]:
        reply = await self._done
        if reply.event == "lost":
            raise SandboxLostError("the sandbox ended during a transfer")
        if reply.event == "failed":
            raise SandboxError(reply.text)
        return reply.value, reply.text


async def _in_thread(helper: _Helper, work: asyncio.Future[_T]) -> _T:
    """Await work in a thread; when cancelled, end the helper so that the thread ends too."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        helper.cancel()
        await asyncio.wait({work}, timeout=30)
        raise


class Placing(NamedTuple):
    """Where an upload goes and how; see `Sandbox.upload`."""

    remote: str
    owner: str | None
    mode: int | None
    clear: bool


async def upload(control: Control, local: Path, how: Placing) -> None:
    """See `Sandbox.upload`."""
    if not await asyncio.to_thread(local.exists):
        raise FileNotFoundError(f"{local} does not exist")
    read_end, write_end = os.pipe()
    message = {
        "op": "unpack",
        "path": how.remote,
        "owner": how.owner,
        "mode": how.mode,
        "clear": how.clear,
    }
    try:
        helper = _Helper(control, message, read_end)
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    loop = asyncio.get_running_loop()
    await _in_thread(helper, loop.run_in_executor(None, _feed, local, how.mode, write_end))
    status, reason = await helper.outcome()
    if status != OK:
        raise SandboxError(f"cannot upload to {how.remote}: {reason}")


def _feed(local: Path, mode: int | None, fd: int) -> None:
    try:
        for chunk in pack_tree(local, mode=mode):
            write_all(fd, chunk)
    except BrokenPipeError:
        return  # the helper ended early; it says why
    finally:
        os.close(fd)


async def download(
    control: Control, remote: str, local: Path, limits: TransferLimits
) -> TransferReport:
    """See `Sandbox.download`."""
    read_end, write_end = os.pipe()
    message = {
        "op": "pack",
        "path": remote,
        "limits": {
            "max_entries": limits.max_entries,
            "max_bytes": limits.max_bytes,
            "max_file_bytes": limits.max_file_bytes,
            "max_depth": limits.max_depth,
        },
    }
    try:
        helper = _Helper(control, message, write_end)
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    with Extractor(local, limits) as extractor:
        loop = asyncio.get_running_loop()
        try:
            fed = await _in_thread(
                helper, loop.run_in_executor(None, _extract, extractor, read_end)
            )
        except BaseException:
            helper.cancel()
            raise
        status, reason = await helper.outcome()
        _check(status, reason, remote)
        if fed == "nothing":
            raise SandboxError(f"cannot download {remote}: the helper sent nothing")
        return await asyncio.to_thread(extractor.finish)


def _extract(extractor: Extractor, fd: int) -> Literal["something", "nothing"]:
    seen: Literal["something", "nothing"] = "nothing"
    try:
        while data := os.read(fd, _CHUNK):
            seen = "something"
            extractor.feed(data)
        return seen
    finally:
        os.close(fd)


def _check(status: int, reason: str, remote: str) -> None:
    if status == OK:
        return
    if status in (NOT_FOUND, WRONG_TYPE):
        raise FileNotFoundError(f"{remote}: {reason}")
    if status == TOO_MUCH:
        raise TransferLimitError(f"{remote}: {reason}")
    raise SandboxError(f"cannot download {remote}: {reason}")
