"""One world in one sandbox: its services, their addresses, and whether they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, EnvironmentFailed
from ramify.contracts.events import LogEvent
from ramify.contracts.sandbox import Endpoint, Sandbox
from ramify.planes.environment.manifest import Manifest
from ramify.planes.environment.readiness import Answer, Gate, Probe, probes
from ramify.planes.environment.records import ServiceSpec
from ramify.planes.environment.services import Launch, Services

_FIRST_PAUSE_SEC, _MOST_PAUSE_SEC = 0.03, 0.5


class Site:
    """Where a world is. Implements `contracts.drivers.DriverWorld`.

    Args:
        manifest: what it is declared as.
        sandbox, ctx: where it runs, and for which rollout.
        order: the services of it that are used, in the order in which they are started.
        forwarded: variables of the host that its processes get.
    """

    def __init__(
        self,
        manifest: Manifest,
        sandbox: Sandbox,
        ctx: Context,
        order: Sequence[ServiceSpec],
        forwarded: Mapping[str, str],
    ) -> None:
        self.manifest, self.sandbox, self.ctx = manifest, sandbox, ctx
        self.workdir = manifest.environment.workdir or ctx.workdir
        env, without = dict(forwarded), tuple[str, ...]()
        if (key := manifest.selection_key) is not None:
            if manifest.environment.task_selection.inject_into == "entrypoint":
                env[key] = ctx.task.id.item_id
            else:
                without = (key,)
        launch = Launch(self.workdir, env, without, ctx.artifacts / "services")
        self.services = Services(sandbox, launch, order)
        readiness = manifest.environment.readiness
        self.probes = probes(readiness, order)
        self._gate = Gate(sandbox, self.endpoint, ctx.clock, self.workdir, readiness.nonce)
        self._endpoints: dict[int, Endpoint] = {}
        self._turn = asyncio.Lock()
        self._pause = _FIRST_PAUSE_SEC
        self._deadline = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Give the world its time to become healthy, from now on."""
        seconds = self.manifest.environment.readiness.timeout_sec
        self._deadline = self.ctx.clock.monotonic() + seconds
        self._pause = _FIRST_PAUSE_SEC

    async def start_all(self) -> None:
        """Start the entrypoint, where the manifest says so, and the services, in order.

        Raises: EnvironmentFailed, ConfigError (the image has no entrypoint).
        """
        if self.manifest.starts_entrypoint:
            await self._start_entrypoint()
        await self.services.start_all()
        self.restart_clock()

    async def endpoint(self, port: int) -> Endpoint:
        """A host address that reaches `port` on the sandbox's loopback."""
        async with self._turn:
            if port not in self._endpoints:
                self._endpoints[port] = await self.sandbox.expose_port(port)
            return self._endpoints[port]

    async def base_url(self, service: str) -> str:
        """`http://host:port` of a service, as the engine reaches it."""
        port = self.manifest.service(service).port
        if port is None:
            raise ConfigError(
                "has no port", file=str(self.manifest.path), field=f"services.{service}"
            )
        endpoint = await self.endpoint(port)
        return f"http://{endpoint.host}:{endpoint.port}"

    async def stop(self, service: str) -> None:
        """End a service: TERM, then KILL."""
        await self.services.stop(service)

    async def start(self, service: str) -> None:
        """Start a service again and wait until it is healthy."""
        await self.services.start([service])
        await self.settle([service])

    async def settle(self, names: Sequence[str]) -> None:
        """Wait until these services answer. Raises EnvironmentFailed."""
        ports = {self.manifest.service(name).port for name in names}
        wanted = [probe for probe in self.probes if probe.port and probe.port in ports]
        self.restart_clock()
        while True:
            answers = await self.ask(wanted)
            if not any(answer.wrong for answer in answers):
                return
            await self.ctx.clock.sleep(self.pause())

    async def ask(self, wanted: Sequence[Probe]) -> list[Answer]:
        """Ask once. Raises EnvironmentFailed where a service ended, or the time is over."""
        self.check()
        answers = await self._gate.ask(wanted)
        wrong = [answer for answer in answers if answer.wrong]
        if wrong and self.ctx.clock.monotonic() > self._deadline:
            self.check()
            raise EnvironmentFailed(self._unhealthy(wrong))
        return answers

    def pause(self) -> float:
        """Seconds until it makes sense to ask again; more each time."""
        self._pause = min(self._pause * 1.5, _MOST_PAUSE_SEC)
        return self._pause

    def check(self) -> None:
        """Raise EnvironmentFailed where a service has ended that nobody stopped."""
        self.services.check(self.manifest.environment.keep_alive)

    def report(self, answers: Sequence[Answer]) -> None:
        """Say when each probe was answered, in wall-clock time."""
        clock = self.ctx.clock
        ahead = clock.now() - clock.monotonic()
        fields = {answer.probe.what: round(ahead + answer.at, 6) for answer in answers}
        event = LogEvent(
            self.ctx.rollout_id, clock.now(), "info", "the world is healthy", {"answered": fields}
        )
        self.ctx.observer.emit(event)

    async def _start_entrypoint(self) -> None:
        image = self.ctx.image
        command = (*image.entrypoint, *image.cmd) if image is not None else ()
        if image is None or not command:
            raise ConfigError(
                "says that the image's entrypoint starts the services, and the image has none; "
                "give the services commands",
                file=str(self.manifest.path),
                field="environment.owns_lifecycle",
            )
        await self.services.start_entrypoint(command, image.user, image.workdir or "/")

    def _unhealthy(self, wrong: Sequence[Answer]) -> str:
        seconds = self.manifest.environment.readiness.timeout_sec
        listed = "; ".join(f"{answer.probe.what}: {answer.wrong}" for answer in wrong)
        ports = {answer.probe.port for answer in wrong}
        late = [service.name for service in self.services.order if service.port in ports]
        tails = "".join(f"; {name}{self.services.tail(name)}" for name in late[:3])
        return f"the world was not healthy within {seconds:g} s: {listed}{tails}"
