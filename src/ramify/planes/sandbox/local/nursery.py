"""Birth and death of sandboxes: the engine's dealings with its spawner."""

from __future__ import annotations

import asyncio
import os
import uuid
from pathlib import Path

from ramify.contracts.errors import SandboxLostError, SandboxStartError
from ramify.planes.sandbox.local import wire
from ramify.planes.sandbox.local.control import Control, Reply
from ramify.planes.sandbox.local.process import Spawner, start_spawner

_BIRTH_SEC = 60.0
_DEATH_SEC = 20.0


class Nursery:
    """Starts the spawner when it is first needed, and sandboxes through it.

    Args:
        runs: the directory that holds one directory per engine.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._spawner: Spawner | None = None
        self._mapped: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._null = -1
        self._closed = False

    @property
    def null(self) -> int:
        """A descriptor of /dev/null."""
        if self._null < 0:
            self._null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        return self._null

    async def ready(self, mode: str) -> Path:
        """Make sure that a spawner runs; returns this engine's directory.

        Raises: SandboxStartError.
        """
        async with self._lock:
            if self._closed:
                raise SandboxStartError("the sandbox provider is closed")
            if self._spawner is None or self._spawner.lost:
                if self._spawner is not None:
                    await self._spawner.aclose()
                self._mapped.clear()
                self._spawner = await start_spawner(self._runs, mode)
            return self._spawner.place

    async def shifted(self, source: str) -> str:
        """A directory as root of the user namespace sees it (id-mapped); made once, then kept.

        Raises: SandboxStartError.
        """
        async with self._lock:
            if source not in self._mapped:
                spawner = self._live()
                target = str(spawner.place / f"map-{len(self._mapped)}")
                await asyncio.to_thread(os.mkdir, target)
                answer = spawner.expect(target)
                spawner.send({"op": "map", "source": source, "target": target})
                event, text = await answer
                if event != "mapped":
                    raise SandboxStartError(f"cannot map the owners of {source}: {text or event}")
                self._mapped[source] = target
            return self._mapped[source]

    def new_place(self) -> tuple[str, str]:
        """Name and mount point of a new sandbox."""
        name = uuid.uuid4().hex[:12]
        root = self._live().place / name / "root"
        root.mkdir(parents=True)
        return name, str(root)

    async def start(self, name: str, message: wire.Message) -> Control:
        """Have a sandbox built; returns its control line once it is ready.

        Whatever goes wrong, cancellation included, nothing is left of it. Raises:
        SandboxStartError.
        """
        spawner = self._live()
        ours, theirs = wire.pair()
        control = Control(ours)
        ready: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def heard(reply: Reply) -> None:
            if not ready.done():
                ready.set_result(reply)

        control.expect_ready(heard)
        over = spawner.expect(name)
        try:
            spawner.send({"op": "create", "name": name, **message}, [theirs.fileno()])
            theirs.close()
            async with asyncio.timeout(_BIRTH_SEC):
                await asyncio.wait({ready, over}, return_when=asyncio.FIRST_COMPLETED)
                if ready.done() and ready.result().event == "ready":
                    control.forget(0)
                    return control
                event, text = await over
            reason = text or ("the spawner died" if event == "lost" else "it ended at once")
            raise SandboxStartError(f"the sandbox could not be built: {reason}")
        except TimeoutError as error:
            control.close()
            await self.end(name)
            raise SandboxStartError(f"the sandbox was not built in {_BIRTH_SEC:g} s") from error
        except BaseException:
            control.close()
            await self.end(name)
            raise
        finally:
            theirs.close()

    async def end(self, name: str, *, keep_files: bool = False) -> None:
        """End a sandbox; returns when no process and no cgroup of it is left. Idempotent.

        Finishes even when the caller is cancelled. Raises: SandboxLostError (it does not end).
        """
        ending = asyncio.ensure_future(self._end(name, keep_files))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending}, timeout=_DEATH_SEC)
            raise

    async def _end(self, name: str, keep_files: bool) -> None:
        spawner = self._spawner
        if spawner is None or spawner.lost:
            return  # it took everything with it
        over = spawner.expect(name)
        spawner.send({"op": "destroy", "name": name, "keep_files": keep_files})
        try:
            async with asyncio.timeout(_DEATH_SEC):
                await over
        except TimeoutError as error:
            raise SandboxLostError(
                f"the sandbox {name} does not end: a process in it cannot be killed"
            ) from error

    async def aclose(self) -> None:
        """End everything. Idempotent."""
        async with self._lock:
            self._closed = True
            if self._spawner is not None:
                await self._spawner.aclose()
                self._spawner = None
            if self._null >= 0:
                os.close(self._null)
                self._null = -1

    def _live(self) -> Spawner:
        if self._spawner is None:
            raise SandboxStartError("the sandbox spawner is not running")
        return self._spawner
