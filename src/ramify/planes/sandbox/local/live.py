"""Sandboxes whose processes can be captured, from the engine's side."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ramify.contracts.errors import (
    SandboxError,
    SandboxLostError,
    SandboxStartError,
    UnsupportedError,
)
from ramify.contracts.process import Process
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.local.captor import FACTS
from ramify.planes.sandbox.local.commands import Collected, Pipes, Spawned
from ramify.planes.sandbox.local.control import Reply
from ramify.planes.sandbox.local.dumps import DumpRecord, Dumps, JobRecord, StreamRecord, sizes
from ramify.planes.sandbox.local.job import RunningJob
from ramify.planes.sandbox.local.sandbox import Birth, LocalSandbox
from ramify.planes.sandbox.local.spawned import LocalProcess
from ramify.planes.sandbox.local.streams import Collector

_DUMP_SEC = 600.0
_PIPE_ROOM, _PIPE_WIDE = 64 * 1024, 1024 * 1024


class Lab(NamedTuple):
    """What captures need of the host.

    `owner`: user and group of root inside where that is another. `keeps_inodes`: whether a file's
    inode number can be kept through any number of checkpoints.
    """

    criu: Path
    dumps: Dumps
    owner: int | None
    keeps_inodes: bool

    @contextmanager
    def opened(self, place: Path, *more: Path) -> Generator[list[int]]:
        """Descriptors of `captor.Places` for a dump in `place`, and of `more` directories."""
        work = place / f"work-{uuid.uuid4().hex[:12]}"
        fds: list[int] = []
        try:
            work.mkdir(mode=0o700)
            if self.owner is not None:
                os.chown(work, self.owner, self.owner)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            paths = (self.criu, place / "images", work, *more)
            fds += [os.open(path, flags) for path in paths]
            yield fds
        finally:
            for fd in fds:
                os.close(fd)
            self.dumps.remove(work)


class Upper(NamedTuple):
    """Where a sandbox's changes are kept: the directory, and (mount, part of it) per overlay."""

    place: Path
    parts: tuple[tuple[str, str], ...]


class LiveSandbox(LocalSandbox):
    """A sandbox that can be captured with its processes (the `Snapshottable` contract).

    Connections from inside to listeners of ours (`serve_in`, the egress proxy) are reset in
    copies, which have listeners of their own.
    """

    def __init__(self, birth: Birth, lab: Lab, upper: Upper) -> None:
        super().__init__(birth)
        self._lab, self._upper = lab, upper
        self._attached: dict[int, LocalProcess] = {}

    async def checkpoint(self) -> SandboxImage:
        """Capture files and processes at one moment; see the contract.

        Cancelled meanwhile, the sandbox ends and nothing is kept.
        """
        self.check_alive()
        dumps = self._lab.dumps
        place = await asyncio.to_thread(dumps.begin, self._lab.owner)
        try:
            record = await self._dump(place)
            image = await self.end(keep=True)
            if image is None:
                raise SandboxLostError("the sandbox ended before it was captured")
            await asyncio.to_thread(dumps.finish, place, image.id, record)
        except (UnsupportedError, SandboxLostError):
            await asyncio.to_thread(dumps.remove, place)
            raise
        except BaseException:
            await self.teardown()
            await asyncio.to_thread(dumps.remove, place)
            raise
        return msgspec.structs.replace(image, live=True)

    def attach(self, pid: int) -> Process:
        """The process that was spawned as `pid` before the checkpoint; see the contract."""
        if pid not in self._attached:
            raise LookupError(f"no captured process of this sandbox was spawned as {pid}")
        return self._attached[pid]

    async def _dump(self, place: Path) -> DumpRecord:
        message = {"op": "checkpoint", "uppers": self._upper.parts}
        try:
            with self._lab.opened(place, self._upper.place) as fds:
                async with asyncio.timeout(_DUMP_SEC):
                    reply = await self.control.ask(message, fds)
        except SandboxLostError:
            raise
        except TimeoutError as error:
            raise SandboxError(f"the capture of {self.id} took over {_DUMP_SEC:g} s") from error
        except SandboxError as error:
            raise UnsupportedError(
                f"the processes of the sandbox cannot be captured: {error}"
            ) from error
        answer = json.loads(reply.text)
        facts = json.loads(await asyncio.to_thread((place / "images" / FACTS).read_text))
        moved = [path for path, inode, real in facts["files"] if inode != real]
        if moved and not self._lab.keeps_inodes:
            await self.control.ask({"op": "thaw", "stopped": facts["stopped"]})
            raise UnsupportedError(
                f"{moved[0]} is open for writing and would get another inode number in a copy:"
                " without root that cannot be kept through a second checkpoint; stop who writes"
                " it before, and start it again"
            )
        jobs = tuple(self._write_down(row) for row in answer["jobs"])
        files = tuple((path, inode) for path, inode, _real in facts["files"])
        found = await asyncio.to_thread(sizes, place / "images")
        return DumpRecord(facts["pod"], facts["highest"], jobs, files, found)

    def _write_down(self, row: dict[str, Any]) -> JobRecord:
        """What a copy needs of a command; takes what is unread out of its pipes."""
        command = self.runner.open.get(row["id"])
        if command is None:
            return JobRecord(row["job"], row["gone"], None, True, False, (None, None, None))
        status = command.job.ended.result().value if command.job.ended.done() else None
        if isinstance(command, Collected):
            out, err = (_stream(one.fileno, False) for one in (command.out, command.err))
            return JobRecord(row["job"], row["gone"], status, True, False, (None, out, err))
        process = command.process
        fed, out, third = process.streams
        rest = (_stream(fed, True), _stream(out, False), _stream(third, process.is_terminal))
        return JobRecord(row["job"], row["gone"], status, False, process.is_terminal, rest)

    async def bring_back(self, image: SandboxImage) -> None:
        """Let the processes of an image go on here. Raises: SandboxStartError, SandboxLostError."""
        place, record = await asyncio.to_thread(self._lab.dumps.find, image.id)
        for job in record.jobs:
            self._adopt(job)
        message = {"op": "restore", "pod": record.pod, "highest": record.highest}
        try:
            with self._lab.opened(place) as fds:
                async with asyncio.timeout(_DUMP_SEC):
                    await self.control.ask(message, fds)
        except SandboxLostError:
            raise
        except (SandboxError, TimeoutError) as error:
            why = str(error) or "it took too long"
            raise SandboxStartError(
                f"the processes of the image {image.id} cannot be restored: {why}"
            ) from error

    def _adopt(self, record: JobRecord) -> None:
        pipes = Pipes(True, self._lab.owner)
        ours: list[int] = []
        theirs: list[int] = []
        inodes: list[int] = []
        for number, stream in enumerate(record.streams):
            if stream is None:
                ours.append(-1)
                continue
            ends = pipes.make()
            is_input = number == 0 or (number == 2 and record.terminal)
            _fill(ends[1], stream.data)
            ours.append(ends[1] if is_input else ends[0])
            theirs.append(ends[0] if is_input else ends[1])
            inodes.append(stream.inode)
        message = {"op": "captured", "job": record.job, "gone": record.gone, "inodes": inodes}
        job = RunningJob(self.control, message, theirs)
        for fd in theirs:
            os.close(fd)
        if record.status is not None:
            job.ended.set_result(Reply("ended", record.status, "", ()))
        if record.gone:
            job.gone.set_result(None)
        if record.collected:
            out, err = Collector(ours[1], 0), Collector(ours[2], 0)
            self.runner.keep(Collected(job, out, err))
            self.runner.leave(out, err)
            return
        pid = record.job["pid"]
        process = LocalProcess(
            job, pid, (ours[0], ours[1], ours[2]), piped_terminal=record.terminal
        )
        self.runner.keep(Spawned(job, process))
        self._attached[pid] = process


def _stream(fd: int, writing: bool) -> StreamRecord | None:
    """A pipe of ours with what is in it, taken out; the processes at its other end stand still."""
    if fd < 0:
        return None
    inode = os.fstat(fd).st_ino
    # Opening it anew gives the other end as well.
    source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK) if writing else fd
    data = bytearray()
    try:
        while piece := os.read(source, 1 << 16):
            data += piece
    except BlockingIOError:  # that was all
        pass
    finally:
        if writing:
            os.close(source)
    return StreamRecord(inode, bytes(data))


def _fill(fd: int, data: bytes) -> None:
    """Put into a pipe what stood in the one that it goes on from. Raises SandboxStartError."""
    if not data:
        return
    if len(data) > _PIPE_ROOM:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_WIDE)
    os.set_blocking(fd, False)
    try:
        if os.write(fd, data) != len(data):
            raise SandboxStartError("a pipe does not hold what stood in it at the checkpoint")
    finally:
        os.set_blocking(fd, True)
