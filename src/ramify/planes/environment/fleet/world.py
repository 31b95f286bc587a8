"""The world of a task that shares a fleet: its own place in the services of others."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramify.contracts.context import Context
from ramify.contracts.environment import ReadinessProbe, StateSnapshot, WorldState
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.fleet.drivers import check_shared, tenant_drivers
from ramify.planes.environment.fleet.host import Fleets, StandingFleet
from ramify.planes.environment.fleet.joining import Member
from ramify.planes.environment.hidden import refuse_hidden, refuse_hidden_in_image
from ramify.planes.environment.manifest import Manifest
from ramify.planes.environment.package import PackageEnvironment
from ramify.planes.environment.parts import Parts
from ramify.planes.environment.snapshots import Snapshots

_LEASE_SEC = 30 * 86_400.0
"""Longer than any rollout: the fleet ends with its engine, and the next one ends its leases."""


class FleetEnvironment:
    """Implements `contracts.environment.Revertible` and `Forkable` for a place in a shared fleet.

    What opens the place is written into the sandbox's file `fleet_env`. A copy of a branch gets a
    place of its own, which begins as a copy of its parent's, and another name and password for it
    in that file: what processes of a live copy read there before is refused from then on.

    Args:
        manifest: what the world is declared as.
        fleets: the engine's fleets.
        home: where copies without hidden files are kept.
        revertible: whether `reset` will be asked for, which costs a snapshot at the start.

    Raises: ConfigError, UnsupportedError (the manifest cannot be one of a shared fleet).
    """

    def __init__(self, manifest: Manifest, fleets: Fleets, home: Path, revertible: bool) -> None:
        check_shared(manifest)
        self._manifest, self._fleets, self._home = manifest, fleets, home
        self._revertible = revertible
        self._package = PackageEnvironment()
        self._there: tuple[Sandbox, Context, StandingFleet, Member] | None = None
        self._parts = Parts(())
        self._snapshots = Snapshots()
        self._quiesced: str | None = None

    # ---- life

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        """Start the fleet if nobody has, and join it; at a further step, the step's files alone.

        Raises: EnvironmentFailed, ConfigError, UnsupportedError, SandboxError (a port of the fleet
        is taken in the task's sandbox).
        """
        if self._there is not None:
            await self._package.provision(sandbox, ctx)
            self._fleet().site.check()
            return
        hidden = self._manifest.verifier.hidden_from_agent
        if hidden:
            digest = ctx.image.digest if ctx.image else ""
            await refuse_hidden_in_image(sandbox, hidden, digest, self._home)
        keys = self._manifest.environment.forward_env.keys
        env = {key: os.environ[key] for key in keys if key in os.environ}
        fleet = await self._fleets.of(self._manifest, ctx, env)
        await self._join(sandbox, ctx, fleet, None)
        await self._package.provision(sandbox, ctx)
        if hidden:
            await refuse_hidden(sandbox, hidden, ctx.workdir, "the work directory")

    async def readiness(self) -> ReadinessProbe:
        """Ask everything that has to answer, once. Gives up where a service has ended."""
        sandbox_ctx = self._ctx()
        site = self._fleet().site
        if not (own := await self._package.readiness()).healthy:
            site.check()
            return own
        answers = await site.ask(site.probes)
        now = sandbox_ctx.clock.monotonic()
        if wrong := [answer for answer in answers if answer.wrong]:
            detail = "; ".join(f"{answer.probe.what}: {answer.wrong}" for answer in wrong)
            return ReadinessProbe(False, now, detail)
        site.restart_clock()
        if self._revertible and self._snapshots.first is None:
            self._snapshots.first = await self.snapshot()
            return await self.readiness()
        return ReadinessProbe(True, min([answer.at for answer in answers], default=now))

    async def query(self) -> dict[str, Any]:
        """The services, and what the task's own places hold. Raises EnvironmentFailed."""
        site = self._fleet().site
        site.check()
        state = await self._parts.describe()
        return {
            "name": self._manifest.environment.name,
            "services": site.services.facts(),
            "state": state.parts,
            "digest": await self._parts.digest(),
        }

    async def teardown(self) -> None:
        """Leave the fleet: the task's places are dropped. Idempotent. Raises EnvironmentFailed."""
        there, self._there = self._there, None
        try:
            if there is not None:
                await _leave(there[2], there[3])
        finally:
            await self._snapshots.remove()
            await self._package.teardown()

    # ---- roll-back in place

    async def snapshot(self) -> StateSnapshot:
        """Capture the task's own places as one cut. Raises EnvironmentFailed."""
        self._fleet().site.check()
        return await self._snapshots.take(self._parts)

    async def restore(self, snapshot: StateSnapshot) -> None:
        """Return the task's own places, and no others, to that state. Raises EnvironmentFailed."""
        self._fleet().site.check()
        await self._snapshots.restore(snapshot, self._parts)

    async def reset(self) -> None:
        """Return to the state in which the world was healthy first.

        Raises: EnvironmentFailed, UnsupportedError (made without `revertible`).
        """
        await self.restore(self._snapshots.reset_to())

    async def mutate(self) -> tuple[str, ...]:
        """Change every place of the task a little, for a check; says what was changed."""
        self._fleet().site.check()
        return await self._parts.mutate()

    async def urls(self) -> dict[str, str]:
        """Service of the fleet → `http://host:port` on this host."""
        site = self._fleet().site
        return {s.name: await site.base_url(s.name) for s in site.services.order if s.port}

    # ---- through a checkpoint

    async def quiesce(self, live: bool) -> Mapping[str, str]:
        """Suspend the tenant: its connections end, and its places stay as they are.

        See `Forkable`. Every service is a `hook`: what is the task's in it is copied, whatever else
        it holds goes on. Raises: UnsupportedError, EnvironmentFailed.
        """
        sandbox, _, fleet, member = self._here()
        fleet.site.check()
        ways = {spec.name: spec.on_branch or "live" for spec in fleet.site.services.order}
        if lost := [name for name, way in ways.items() if way == "live"]:
            raise UnsupportedError(
                f"{', '.join(lost)} is shared with other tasks, so neither its memory nor its "
                'connections come along; declare on_branch = "hook" with the state that is '
                'copied, or "restart" where it holds nothing that counts'
            )
        await fleet.fleet.suspend(member, sandbox)
        self._quiesced = await self._parts.digest()
        return dict.fromkeys(ways, "hook")

    async def resume(self) -> None:
        """Let the tenant in again, with what it was given."""
        if self._quiesced is not None:
            sandbox, _, fleet, member = self._here()
            await fleet.fleet.admit(member, sandbox)
            self._quiesced = None

    async def fork(self, sandbox: Sandbox, ctx: Context) -> FleetEnvironment:
        """Join as a new tenant whose places begin as copies of this one's; see `Forkable`."""
        _, _, fleet, member = self._here()
        if self._quiesced is None:
            raise EnvironmentFailed("the world was forked without `quiesce` before")
        child = FleetEnvironment(self._manifest, self._fleets, self._home, revertible=False)
        child._package = await self._package.fork(sandbox, ctx)
        await child._join(sandbox, ctx, fleet, member)
        try:
            if await child._parts.digest() != self._quiesced:
                raise EnvironmentFailed("a tenant's copy is not what its places were")
        except BaseException:
            await child.teardown()
            raise
        return child

    async def describe(self) -> WorldState:
        """What the task's places hold, and the files of the work directory."""
        self._here()
        state = await self._parts.describe()
        files = await self._package.describe()
        return WorldState({**files.parts, **state.parts}, {**files.left_out, **state.left_out})

    # ---- parts of the above

    def _here(self) -> tuple[Sandbox, Context, StandingFleet, Member]:
        if self._there is None:
            raise EnvironmentFailed("the world is not there: provision comes first, teardown last")
        return self._there

    def _ctx(self) -> Context:
        return self._here()[1]

    def _fleet(self) -> StandingFleet:
        return self._here()[2]

    async def _join(
        self, sandbox: Sandbox, ctx: Context, fleet: StandingFleet, source: Member | None
    ) -> None:
        member = await fleet.fleet.join(sandbox, ctx.rollout_id, _LEASE_SEC, source)
        self._there = sandbox, ctx, fleet, member
        states, site = self._manifest.state, fleet.site
        self._parts = Parts(tenant_drivers(states, member, site.sandbox, site))
        try:
            await self._tell(sandbox, member)
        except BaseException:
            await self.teardown()
            raise

    async def _tell(self, sandbox: Sandbox, member: Member) -> None:
        """Write down inside how the places are opened."""
        lines = [f"export {key}={shlex.quote(value)}" for key, value in member.variables.items()]
        async with Scratch() as folder:
            file = folder / "env"
            file.write_text("".join(f"{line}\n" for line in lines))
            remote = self._manifest.environment.fleet_env
            await sandbox.upload(file, remote, mode=0o644, clear=True)


async def _leave(fleet: StandingFleet, member: Member) -> None:
    try:
        await fleet.fleet.leave(member)
    except EnvironmentFailed:
        if not fleet.broken:
            raise
        await fleet.fleet.abandon(member)  # its places go with the fleet
