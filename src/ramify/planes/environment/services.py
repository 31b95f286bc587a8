"""The processes of a world: started in order, drained, watched and stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import EnvironmentFailed, SandboxError, UnsupportedError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.records import ServiceSpec
from ramify.planes.environment.servicelog import ServiceLog, last_lines
from ramify.planes.environment.sockets import listeners

ENTRYPOINT = "entrypoint"
"""What the process of the image's entrypoint is called among services."""

_GONE_SEC = 20.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How the world's own processes are started.

    Attributes:
        workdir: where, unless a service says otherwise.
        env: added to their environment (forwarded variables, the task's id).
        without: variables of the sandbox that they do not get.
        logs: the host directory where their logs are kept.
    """

    workdir: str
    env: Mapping[str, str]
    without: Sequence[str]
    logs: Path


class Running:
    """One process of the world, drained and watched until it is closed."""

    def __init__(self, spec: ServiceSpec, process: Process, log: ServiceLog) -> None:
        self.spec, self.log = spec, log
        self._process = process
        self.code: int | None = None
        self.lost = False
        self._tasks = [
            asyncio.create_task(self._drain(), name=f"drain-{spec.name}"),
            asyncio.create_task(self._watch(), name=f"watch-{spec.name}"),
        ]

    @property
    def pid(self) -> int:
        """Its process id inside."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.code is None and not self.lost

    async def stop(self) -> None:
        """TERM, then KILL; returns when nothing of it is left."""
        if self.alive:
            try:
                await self._process.signal(signal.SIGTERM)
                async with asyncio.timeout(self.spec.stop_timeout):
                    await asyncio.wait([self._tasks[1]])
            except TimeoutError:
                pass  # It does not want to end by itself; `aclose` kills it.
        await self.aclose()

    async def aclose(self) -> None:
        """Kill what is left of it and free its streams. Idempotent."""
        await uninterrupted(self._close())

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_GONE_SEC):
                await self._process.aclose()
        except SandboxError:
            self.lost = True  # The whole sandbox is gone or frozen, and this process with it.
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            self.log.close()

    async def _drain(self) -> None:
        try:
            while data := await self._process.read():
                self.log.feed(data)
        except SandboxError:
            self.lost = True

    async def _watch(self) -> None:
        try:
            self.code = await self._process.wait()
        except SandboxError:
            self.lost = True


class Services:
    """The services of one world in one sandbox.

    Args:
        sandbox: where they run.
        launch: how they are started.
        order: the services, in the order in which they are started.
    """

    def __init__(self, sandbox: Sandbox, launch: Launch, order: Sequence[ServiceSpec]) -> None:
        self._sandbox, self._launch = sandbox, launch
        self.order = tuple(order)
        self._running: dict[str, Running] = {}
        self._stopped: set[str] = set()

    @property
    def lost(self) -> bool:
        """Whether a service went with its sandbox."""
        return any(running.lost for running in self._running.values())

    async def start_all(self) -> None:
        """Start every service that has a command, in order.

        Raises: EnvironmentFailed (a port is taken, or a command cannot be started).
        """
        await self._check_ports([s for s in self.order if s.command is not None])
        for spec in self.order:
            if spec.command is not None:
                await self._spawn(spec, spec.command)

    async def start_entrypoint(self, command: Sequence[str], user: str | None, cwd: str) -> None:
        """Start the image's entrypoint, before the services that have commands of their own."""
        others = [s for s in self.order if s.command is None]
        await self._check_ports(others)
        spec = ServiceSpec(ENTRYPOINT, user=user, cwd=cwd)
        await self._spawn(spec, command)

    async def start(self, names: Sequence[str]) -> None:
        """Start services again, in the world's order.

        Raises: EnvironmentFailed, UnsupportedError (the entrypoint started one of them).
        """
        specs = [(spec, _command(spec)) for spec in self.order if spec.name in names]
        earlier = {spec.name: self._running.get(spec.name) for spec, _ in specs}
        for running in earlier.values():
            if running is not None:
                await running.aclose()
        await self._check_ports([spec for spec, _ in specs])
        for spec, command in specs:
            before = earlier[spec.name]
            await self._spawn(spec, command, before.log.tail if before else b"")
            self._stopped.discard(spec.name)

    async def stop(self, name: str) -> None:
        """Stop one service. Idempotent. Raises: UnsupportedError (the entrypoint started it)."""
        _command(self._spec(name))
        self._stopped.add(name)
        running = self._running.get(name)
        if running is not None:
            await running.stop()

    def check(self, keep_alive: bool) -> None:
        """Raise EnvironmentFailed where a service has ended that nobody stopped.

        `keep_alive`: an entrypoint that ends with exit code 0 is no failure.
        """
        for name, running in self._running.items():
            if running.alive or name in self._stopped:
                continue
            if name == ENTRYPOINT and keep_alive and running.code == 0:
                continue
            if running.lost:
                raise EnvironmentFailed(f"the service {name!r} is gone with its sandbox")
            raise EnvironmentFailed(f"the service {name!r} {_ended(running)}{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The end of a service's log as the end of a message."""
        running = self._running.get(name) or self._running.get(ENTRYPOINT)
        said = last_lines(running.log.tail) if running else ""
        return f"; the end of its log:\n{said}" if said else "; it wrote no log"

    async def owners(self) -> None:
        """Check that every service listens on its port itself.

        A service whose port nobody is seen to listen on is left to the readiness probes. Raises:
        EnvironmentFailed, names who listens in its place.
        """
        ported = [spec for spec in self.order if spec.port is not None]
        if not ported or (seen := await listeners(self._sandbox)) is None:
            return
        for spec in ported:
            root = self._running.get(spec.name if spec.command else ENTRYPOINT)
            holders = seen.holders.get(spec.port or 0, frozenset())
            if root is None or not root.alive or not holders:
                continue
            strangers = [pid for pid in holders if not seen.belongs(pid, root.pid)]
            if len(strangers) == len(holders):
                raise EnvironmentFailed(
                    f"port {spec.port} of the service {spec.name!r} is served by "
                    f"{seen.named(strangers)}, which is no process of that service"
                )

    def facts(self) -> dict[str, dict[str, object]]:
        """Service → port, state and exit code, as JSON."""
        found: dict[str, dict[str, object]] = {}
        for spec in self.order:
            running = self._running.get(spec.name if spec.command else ENTRYPOINT)
            state = "running" if running is not None and running.alive else "ended"
            state = "stopped" if spec.name in self._stopped else state
            found[spec.name] = {"state": state, "port": spec.port}
            if running is not None and running.code is not None:
                found[spec.name]["exit_code"] = running.code
        return found

    def attach_all(self, earlier: Services, restarted: frozenset[str]) -> None:
        """Take over the processes that `earlier` had when its sandbox was captured.

        `restarted` are those that did not come along. Raises: EnvironmentFailed (one of the others
        is not among the captured), UnsupportedError (this sandbox holds no captured processes).
        """
        for name, running in earlier._running.items():
            if name in restarted or name in earlier._stopped:
                self._stopped.add(name)
                continue
            if not isinstance(self._sandbox, Snapshottable):
                raise UnsupportedError(
                    f"the service {name!r} has to go on live, and this sandbox cannot do that"
                )
            try:
                process = self._sandbox.attach(running.pid)
            except LookupError:
                raise EnvironmentFailed(
                    f"the service {name!r} was not captured{earlier.tail(name)}"
                ) from None
            log = ServiceLog(self._launch.logs / f"{name}.log", running.log.tail)
            self._running[name] = Running(running.spec, process, log)

    async def aclose(self) -> None:
        """End every service at once, without asking. Idempotent."""
        running, self._running = self._running, {}
        async with asyncio.TaskGroup() as group:
            for each in running.values():
                group.create_task(each.aclose())

    def _spec(self, name: str) -> ServiceSpec:
        return next(spec for spec in self.order if spec.name == name)

    async def _spawn(
        self, spec: ServiceSpec, command: str | Sequence[str], earlier: bytes = b""
    ) -> None:
        launch = self._launch
        unset = "".join(f"unset {name}; " for name in launch.without)
        shell = f"{unset}exec 2>&1; "
        line: Sequence[str]
        if isinstance(command, str):
            line = ("/bin/sh", "-c", f"{shell}{command}")
        else:
            line = ("/bin/sh", "-c", f'{shell}exec "$@"', spec.name, *command)
        try:
            process = await self._sandbox.spawn(
                line,
                user=spec.user,
                cwd=spec.cwd or launch.workdir,
                env={**launch.env, **spec.env},
            )
        except SandboxError as error:
            raise EnvironmentFailed(
                f"the service {spec.name!r} cannot be started: {error}"
            ) from error
        await process.close_stdin()
        log = ServiceLog(launch.logs / f"{spec.name}.log", earlier)
        self._running[spec.name] = Running(spec, process, log)

    async def _check_ports(self, specs: Sequence[ServiceSpec]) -> None:
        wanted = [spec for spec in specs if spec.port is not None]
        if not wanted or (seen := await listeners(self._sandbox)) is None:
            return
        for spec in wanted:
            if (holders := seen.holders.get(spec.port or 0)) is not None:
                who = f" by {seen.named(holders)}" if holders else ""
                raise EnvironmentFailed(
                    f"port {spec.port} of the service {spec.name!r} is taken already{who}"
                )


def _command(spec: ServiceSpec) -> str:
    if spec.command is None:
        raise UnsupportedError(
            f"the service {spec.name!r} is started by the image's entrypoint; give it a `command` "
            "in the manifest if it has to be stopped and started by itself"
        )
    return spec.command


def _ended(running: Running) -> str:
    code = running.code or 0
    if code > 128:
        return f"was killed by signal {code - 128}"
    why = " (a service has to stay in the foreground)" if code == 0 else ""
    return f"ended with exit code {code}{why}"
