"""Trees through a container's wire, in both directions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ramify.contracts.errors import SandboxError, SandboxLostError, TransferLimitError
from ramify.contracts.sandbox import TransferLimits, TransferReport
from ramify.planes.sandbox.archive import Extractor
from ramify.planes.sandbox.descent import NOT_FOUND, OK, TOO_MUCH, WRONG_TYPE
from ramify.planes.sandbox.docker.link import Channel, Link
from ramify.planes.sandbox.packing import pack_tree

_READ = 256 * 1024
_MAX_ANSWER = 16 * 1024
_T = TypeVar("_T")


async def upload(
    link: Link, local: Path, remote: str, *, owner: str | None, mode: int | None, clear: bool
) -> None:
    """Send a tree, as `Sandbox.upload` states it.

    Raises: SandboxError, SandboxLostError, OSError (of the host).
    """
    chunks = pack_tree(local, mode=mode)
    chunk = await _in_thread(_next, chunks)  # a missing file is found before we ask
    request = {"op": "unpack", "path": remote, "owner": owner, "mode": mode, "clear": clear}
    channel = link.open(request)
    try:
        try:
            while chunk is not None:
                await channel.send(chunk)
                chunk = await _in_thread(_next, chunks)
            channel.send_eof()
        except BrokenPipeError:
            pass  # it refused; why is in its answer
        status, reason = await _answer(channel)
        if status != OK:
            raise SandboxError(f"cannot put {local} at {remote}: {reason}")
    finally:
        channel.close()
        _close(chunks)


async def download(link: Link, remote: str, local: Path, limits: TransferLimits) -> TransferReport:
    """Fetch a tree, as `Sandbox.download` states it.

    Raises: FileNotFoundError, TransferLimitError, SandboxError, SandboxLostError.
    """
    numbers = (limits.max_entries, limits.max_bytes, limits.max_file_bytes, limits.max_depth)
    request = {"op": "pack", "path": remote, "limits": numbers}
    channel = link.open(request)
    try:
        with Extractor(local, limits) as extractor:
            while data := await channel.out.read(_READ):
                await _in_thread(extractor.feed, data)
            _check(remote, *await _answer(channel))
            return await _in_thread(extractor.finish)
    finally:
        channel.close()


async def _in_thread(work: Callable[..., _T], *args: Any) -> _T:
    """Run blocking work; a cancelled caller waits for it, as it holds open files."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _check(remote: str, status: int, reason: str) -> None:
    if status in (NOT_FOUND, WRONG_TYPE):
        raise FileNotFoundError(f"{remote} in the sandbox: {reason}")
    if status == TOO_MUCH:
        raise TransferLimitError(f"{remote} in the sandbox: {reason}")
    if status != OK:
        raise SandboxError(f"cannot read {remote} in the sandbox: {reason}")


async def _answer(channel: Channel) -> tuple[int, str]:
    """What the helper inside said at its end."""
    raw = b""
    while data := await channel.err.read(_MAX_ANSWER):
        raw += data
        if len(raw) > _MAX_ANSWER:
            raise SandboxLostError("the supervisor answered with too much")
    if not raw:
        raise SandboxError("the helper inside the sandbox was killed")
    try:
        answer = json.loads(raw)
        return int(answer["status"]), str(answer["reason"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SandboxLostError("the supervisor answered with nonsense") from error


def _next(chunks: Iterator[bytes]) -> bytes | None:
    return next(chunks, None)


def _close(chunks: Iterator[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
