"""The supervisor's part in checkpoints of a live sandbox. Standard library only.

checkpoint   [places, upper]        stop and dump the pod; its commands are in the answer
thaw                                 after a checkpoint that nobody wants: go on
captured     [streams...]            before `restore`: one command of then, its pipes of now
restore      [places]                bring the pod back

`places` are the three descriptors of `captor.Places`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ramify.planes.sandbox.inside import Job
from ramify.planes.sandbox.local import captor, wire
from ramify.planes.sandbox.local.pod import PodJob, PodJobs

Reply = Callable[[int, str, int, str], None]


class _Captured(NamedTuple):
    request: int
    job: PodJob
    gone: bool
    pipes: list[tuple[int, int]]


class Captures:
    """Checkpoints and restores of one sandbox's pod.

    Args:
        jobs: its commands.
        ids: the engine's number of each command that it still hears of.
        known: puts a restored command among them (its number, the job).
        reply: answers a request (number, event, value, text).
    """

    def __init__(
        self, jobs: PodJobs, ids: dict[Job, int], known: Callable[[int, Job], None], reply: Reply
    ) -> None:
        self._jobs, self._ids, self._known, self._reply = jobs, ids, known, reply
        self._awaited: list[_Captured] = []

    def begin(self, message: wire.Message, fds: list[int]) -> tuple[int, int] | None:
        """Begin what a request asks for: (pid, descriptor) of the helper that does the work."""
        op = message["op"]
        if op == "checkpoint":
            return self._checkpoint(message, fds)
        if op == "restore":
            return self._restore(message, fds)
        if op == "captured":
            job = PodJob(**message["job"])
            kept = [os.dup(fd) for fd in fds]
            pipes = list(zip(message["inodes"], kept, strict=True))
            self._awaited.append(_Captured(message["id"], job, message["gone"], pipes))
        else:
            captor.thaw(self._jobs.pod, message["stopped"])
            self._jobs.go_on()
            self._reply(message["id"], "done", 0, "")
        return None

    def ended(self, op: str, request: int, problem: str) -> None:
        """The helper of a request has ended; answer it. `problem`: what it said, or ""."""
        if bool(problem) == (op == "checkpoint"):  # nothing was captured, or it is back
            self._jobs.go_on()
        if problem:
            self._reply(request, "failed", 1, problem)
            return
        jobs: list[dict[str, Any]] = []
        if op == "checkpoint":
            for job, written in self._jobs.written().items():
                gone = self._jobs.is_gone(job)
                row = {"id": self._ids.get(job, 0), "gone": gone, "job": written._asdict()}
                jobs.append(row)
        self._reply(request, "done", 0, json.dumps({"pod": self._jobs.pod, "jobs": jobs}))

    def _checkpoint(self, message: wire.Message, fds: list[int]) -> tuple[int, int]:
        uppers = [captor.Upper(*one) for one in message["uppers"]]
        self._jobs.hold()
        try:
            return self._fork(
                lambda: captor.dump(captor.Places(*fds[:3]), self._jobs.pod, fds[3], uppers)
            )
        except OSError:
            self._jobs.go_on()
            raise

    def _restore(self, message: wire.Message, fds: list[int]) -> tuple[int, int]:
        captor.forget_low_pids(message["highest"])
        made = self._jobs.expect(message["pod"], [(one.job, one.gone) for one in self._awaited])
        pipes: list[tuple[int, int]] = []
        for one, (job, status) in zip(self._awaited, made, strict=True):
            pipes += [(one.job.status, status), *one.pipes]
            if one.request:
                self._known(one.request, job)
        self._awaited.clear()
        try:
            return self._fork(lambda: captor.restore(captor.Places(*fds[:3]), pipes))
        finally:
            for _inode, fd in pipes:
                os.close(fd)

    def _fork(self, work: Callable[[], str]) -> tuple[int, int]:
        done_r, done_w = os.pipe()
        try:
            pid = self._jobs.fork_helper()
            if pid == 0:
                _work(work, done_w)
        except OSError:
            os.close(done_r)
            raise
        finally:
            os.close(done_w)
        return pid, done_r


def _work(work: Callable[[], str], done: int) -> NoReturn:
    """In a process of its own: do it, and say how it went ("." is well)."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        problem = work()
        os.write(done, problem.encode()[:4000] if problem else b".")
    except BaseException as error:  # nothing may return into the supervisor's loop
        os.write(done, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(0)


def outcome(said: bytes) -> str:
    """What a helper's last word means: "" that it went well, else the problem."""
    if said == b".":
        return ""
    return said.decode("utf-8", "replace") or "the helper inside the sandbox was killed"
