"""Worker threads for other people's functions, some of which never return.

A thread cannot be killed. Its job can be written off: the result is ignored, the thread goes on
until its function returns, and how many such threads there may be is bounded. All threads are
daemons, so none of them keeps the process from ending.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

_IDLE_SEC = 5.0


class Returned(NamedTuple):
    """How a call ended: with a value, or with what it raised."""

    value: Any
    raised: BaseException | None = None


class ThreadJob:
    """One call, to be submitted to `WorkerThreads`. Never raises; runs in the caller's context.

    Args:
        call: the function with its arguments.
        threads: where it will run.
    """

    def __init__(self, call: Callable[[], Any], threads: WorkerThreads) -> None:
        self._call, self._threads = call, threads
        self._context = contextvars.copy_context()
        self._started = self._ended = self._written_off = False

    def __call__(self) -> Returned:
        """Call the function, unless it was written off before its turn came."""
        with self._threads.lock:
            if self._written_off:
                return Returned(None)
            self._started = True
        try:
            return Returned(self._context.run(self._call))
        except BaseException as error:  # SystemExit of a user's function must not end our thread
            return Returned(None, error)
        finally:
            with self._threads.lock:
                self._ended = True
                if self._written_off:
                    self._threads.written_off -= 1

    def write_off(self) -> None:
        """Nobody waits for it any more."""
        with self._threads.lock:
            if not self._ended and not self._written_off:
                self._written_off = True
                self._threads.written_off += self._started


class WorkerThreads(Executor):
    """Daemon threads, made when needed and gone when idle for a while.

    How many run at once is the caller's business: a job never waits for a thread.

    Attributes:
        written_off: jobs that are still running though nobody waits for them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.written_off = 0
        self._idle = 0
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a thread of its own."""
        future: Future[Any] = Future()
        self._jobs.put((future, lambda: fn(*args, **kwargs)))
        with self.lock:
            wanted = self._idle == 0
            if not wanted:
                self._idle -= 1
        if wanted:
            threading.Thread(target=self._work, name="ramify-reward", daemon=True).start()
        return future

    def _work(self) -> None:
        while (job := self._next()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    value = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            del future, call, job  # an idle thread keeps nothing alive
            with self.lock:
                self._idle += 1

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        while True:
            try:
                return self._jobs.get(timeout=_IDLE_SEC)
            except Empty:
                with self.lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return None
                # Every idle thread is promised to a job that is about to be there.
