"""The world of a manifest: provisioned, gated, asked, put back, forked and torn down."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.environment import ReadinessProbe, StateSnapshot, WorldState
from ramify.contracts.errors import EnvironmentFailed, UnsupportedError
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.hidden import refuse_hidden, refuse_hidden_in_image
from ramify.planes.environment.manifest import Manifest
from ramify.planes.environment.options import WorldOptions
from ramify.planes.environment.package import PackageEnvironment
from ramify.planes.environment.parts import Parts
from ramify.planes.environment.persistent import PersistentState
from ramify.planes.environment.placing import chosen_services, upload_files
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.site import Site
from ramify.planes.environment.snapshots import Snapshots

_MEMORY_KINDS = ("http", "command", "process")
"""Kinds of state that, naming a service, stand for what it has in memory."""
_PORTS = {"postgresql": 5432, "postgres": 5432, "redis": 6379}


@dataclass(slots=True)
class _Hooks:
    """State that was written down for services that do not come through a checkpoint."""

    restarted: frozenset[str]
    hooked: Sequence[str]
    places: Mapping[int, Path]


class ManifestEnvironment:
    """Implements `contracts.environment.Revertible` and `Forkable` for a manifest.

    Args:
        manifest: what the world is declared as.
        options: how it is run.
    """

    def __init__(self, manifest: Manifest, options: WorldOptions) -> None:
        self._manifest, self._options = manifest, options
        self._package = PackageEnvironment()
        self._site: Site | None = None
        self._parts = Parts(())
        self._specs: tuple[StateSpec, ...] = ()
        self._kept: PersistentState | None = None
        self._loaded = self._saved = False
        self._snapshots = Snapshots()
        self._healthy = False
        self._hooks: _Hooks | None = None

    # ---- life

    async def provision(self, sandbox: Sandbox, ctx: Context) -> None:
        """Put files in place and start the services; at a further step, the step's files alone.

        Raises: EnvironmentFailed, ConfigError (the image lacks an entrypoint), UnsupportedError,
        SandboxError.
        """
        if self._site is not None:
            await self._package.provision(sandbox, ctx)
            self._site.check()
            return
        manifest, hidden = self._manifest, self._manifest.verifier.hidden_from_agent
        if manifest.environment.isolation == "persistent":
            place = self._options.keep / manifest.environment.name
            kept = PersistentState(place, manifest.environment.name, self._options.wait_sec)
            await kept.claim()
            self._kept = kept
        if hidden:
            digest = ctx.image.digest if ctx.image else ""
            await refuse_hidden_in_image(sandbox, hidden, digest, self._options.home)
        await upload_files(manifest, sandbox, ctx, self._options.home)
        await self._package.provision(sandbox, ctx)
        if hidden:
            await refuse_hidden(sandbox, hidden, ctx.workdir, "the work directory")
        order = await chosen_services(manifest, self._options.wanted, sandbox)
        site = Site(manifest, sandbox, ctx, order, self._forwarded())
        self._take_place(site)
        await site.start_all()

    async def readiness(self) -> ReadinessProbe:
        """Ask everything that has to answer, once, all at the same time.

        `answered_at` is when the first of the answers came, so that all of them are at least that
        recent. Gives up (EnvironmentFailed) after the manifest's `timeout_sec`, at once where a
        service has ended or its port is served by somebody else.
        """
        site = self._here()
        if not (own := await self._package.readiness()).healthy:
            site.check()
            return own
        answers = await site.ask(site.probes)
        now = site.ctx.clock.monotonic()
        if wrong := [answer for answer in answers if answer.wrong]:
            detail = "; ".join(f"{answer.probe.what}: {answer.wrong}" for answer in wrong)
            return ReadinessProbe(False, now, detail, site.pause())
        if not self._healthy:
            await site.services.owners()
            if self._kept is not None and not self._loaded:
                self._loaded = True
                if await self._kept.load(self._parts):
                    return await self.readiness()
            if self._options.revertible and self._snapshots.first is None:
                self._snapshots.first = await self.snapshot()
                return await self.readiness()
            site.report(answers)
            self._healthy = True
        site.restart_clock()
        return ReadinessProbe(True, min([answer.at for answer in answers], default=now))

    async def query(self) -> dict[str, Any]:
        """The services and what every declared state holds.

        Raises: EnvironmentFailed, also where a service has ended.
        """
        site = self._here()
        site.check()
        state = await self._parts.describe()
        if self._kept is not None and self._healthy:
            # What verifies next may end the sandbox that teardown would save from.
            await self._kept.save(self._parts)
            self._saved = True
        return {
            "name": self._manifest.environment.name,
            "services": site.services.facts(),
            "state": state.parts,
            "digest": await self._parts.digest(),
        }

    async def teardown(self) -> None:
        """Keep the state of a persistent world, end the services, free what lives on the host.

        Idempotent. Raises: EnvironmentFailed (the state could not be kept; what was kept before
        stays).
        """
        site, self._site = self._site, None
        kept, self._kept = self._kept, None
        try:
            # Where the verifier ended the sandbox, the state was saved when it was queried.
            gone = site is None or (self._saved and site.services.lost)
            if kept is not None and self._healthy and site is not None and not gone:
                site.check()
                await kept.save(self._parts)
        finally:
            if site is not None:
                await site.services.aclose()
            if kept is not None:
                kept.release()
            await self._snapshots.remove()
            await self._package.teardown()

    # ---- roll-back in place

    async def snapshot(self) -> StateSnapshot:
        """Capture the declared state, as one cut over all of it.

        Raises: EnvironmentFailed (a service has ended, or the world does not stand still),
        UnsupportedError (a service has state in memory that nothing declared captures).
        """
        site = self._here()
        site.check()
        self._refuse_memory()
        return await self._snapshots.take(self._parts)

    async def restore(self, snapshot: StateSnapshot) -> None:
        """Return to that state; services that may lose their memory are started anew.

        Raises: EnvironmentFailed (also for a snapshot of another world).
        """
        site = self._here()
        self._snapshots.check(snapshot)
        site.check()
        serving = self._serving()
        again = [s.name for s in site.services.order if s.on_branch == "restart"]
        again = [name for name in again if name not in serving]
        for name in reversed(again):
            await site.stop(name)
        try:
            await self._snapshots.restore(snapshot, self._parts)
        finally:
            if again:
                await site.services.start(again)
                await site.settle(again)
        site.check()

    async def reset(self) -> None:
        """Return to the state in which the world was healthy first.

        Raises: EnvironmentFailed, UnsupportedError (made without `revertible`).
        """
        await self.restore(self._snapshots.reset_to())

    async def mutate(self) -> tuple[str, ...]:
        """Change every declared state a little, for a check; says what was changed.

        Raises: UnsupportedError (a state that can only be changed with `mutate` in the manifest).
        """
        self._here().check()
        return await self._parts.mutate()

    async def urls(self) -> dict[str, str]:
        """Service, or `port N` for other ports of the world → `http://host:port` on this host."""
        site = self._here()
        found = {s.name: await site.base_url(s.name) for s in site.services.order if s.port}
        known = {service.port for service in site.services.order}
        for port in self._manifest.environment.ports:
            if port not in known:
                endpoint = await site.endpoint(port)
                found[f"port {port}"] = f"http://{endpoint.host}:{endpoint.port}"
        return found

    # ---- through a checkpoint

    async def quiesce(self, live: bool) -> Mapping[str, str]:
        """Make ready for a checkpoint; see `contracts.environment.Forkable`."""
        site = self._here()
        site.check()
        if self._kept is not None:
            raise UnsupportedError(
                f"the world {self._manifest.environment.name!r} is persistent, so it has one "
                'history; a branch needs isolation = "per_task"'
            )
        ways = {spec.name: spec.on_branch or "live" for spec in site.services.order}
        if self._manifest.starts_entrypoint:
            ways.setdefault("entrypoint", "live")
        if not live and (lost := [name for name, way in ways.items() if way == "live"]):
            raise UnsupportedError(
                f"the memory of {', '.join(lost)} would be lost: this checkpoint holds files "
                "only; declare on_branch = "
                '"restart" where that does not matter, "hook" with a state that gives it back, or '
                "use a sandbox that captures processes (`ramify doctor`)"
            )
        hooked = [name for name, way in ways.items() if way == "hook"]
        places = await self._write_hooks(hooked)
        restarted = [name for name, way in ways.items() if way != "live"]
        self._hooks = _Hooks(frozenset(restarted), hooked, places)
        for name in reversed(restarted):
            await site.stop(name)
        return ways

    async def resume(self) -> None:
        """Start again what `quiesce` stopped, and give hooks their state back."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            await self._revive(hooks)

    async def fork(self, sandbox: Sandbox, ctx: Context) -> ManifestEnvironment:
        """The same world in a sandbox made from the checkpoint; see `Forkable`."""
        site, hooks = self._here(), self._hooks
        if hooks is None:
            raise EnvironmentFailed("the world was forked without `quiesce` before")
        child = ManifestEnvironment(self._manifest, self._options)
        child._package = await self._package.fork(sandbox, ctx)
        there = Site(self._manifest, sandbox, ctx, site.services.order, self._forwarded())
        child._take_place(there)
        try:
            there.services.attach_all(site.services, hooks.restarted)
            await child._revive(hooks)
        except BaseException:
            await child.teardown()
            raise
        there.restart_clock()
        return child

    async def describe(self) -> WorldState:
        """Declared state, the files of the work directory, and how the services are."""
        site = self._here()
        state = await self._parts.describe()
        files = await self._package.describe()
        parts = {**files.parts, **state.parts}
        facts = site.services.facts()
        if facts:
            parts["services"] = {name: _fact(about) for name, about in facts.items()}
        return WorldState(parts, {**files.left_out, **state.left_out})

    # ---- parts of the above

    def _here(self) -> Site:
        if self._site is None:
            raise EnvironmentFailed("the world is not there: provision comes first, teardown last")
        return self._site

    def _take_place(self, site: Site) -> None:
        """Be in this sandbox from now on."""
        used = {service.name for service in site.services.order}
        self._specs = tuple(
            spec for spec in self._manifest.state if spec.service is None or spec.service in used
        )
        make = self._options.make_driver
        self._parts = Parts([make(spec, site.sandbox, site) for spec in self._specs])
        self._site = site

    def _forwarded(self) -> dict[str, str]:
        keys = self._manifest.environment.forward_env.keys
        return {key: os.environ[key] for key in keys if key in os.environ}

    def _refuse_memory(self) -> None:
        """Raise UnsupportedError for services whose memory `restore` would not bring back."""
        if self._options.declared_only:
            return
        covered = {spec.service for spec in self._specs if spec.kind in _MEMORY_KINDS}
        lost = [
            service.name
            for service in self._here().services.order
            if service.on_branch != "restart" and service.name not in covered
        ]
        if lost:
            raise UnsupportedError(
                f"the memory of {', '.join(lost)} is no part of the declared state, so restoring "
                'would not bring it back; declare on_branch = "restart" where it does not matter, '
                "or a state (http, command, process) with that service"
            )

    def _serving(self) -> set[str | None]:
        """Services that a driver asks, and that have to run while it restores."""
        urls = [urlsplit(spec.url) for spec in self._specs if spec.url is not None]
        ports = {parts.port or _PORTS.get(parts.scheme) for parts in urls}
        listed = self._manifest.environment.services
        asked = {spec.service for spec in self._specs if spec.kind in ("http", "process")}
        return asked | {service.name for service in listed if service.port in ports}

    async def _write_hooks(self, hooked: Sequence[str]) -> dict[int, Path]:
        """Write down the state of services that have hooks: index of the driver → where."""
        places: dict[int, Path] = {}
        for index, spec in enumerate(self._specs):
            if spec.service in hooked:
                places[index] = await self._snapshots.fresh_place()
                await self._parts.drivers[index].snapshot(places[index])
        return places

    async def _revive(self, hooks: _Hooks) -> None:
        """Start what was stopped, in order, and give hooks their state."""
        site = self._here()
        again = [s.name for s in site.services.order if s.name in hooks.restarted]
        if again:
            await site.services.start(again)
        if hooks.hooked:
            await site.settle(hooks.hooked)
        for index, place in hooks.places.items():
            await self._parts.drivers[index].restore(place)


def _fact(about: Mapping[str, object]) -> str:
    return msgspec.json.encode(about, order="sorted").decode()
