"""The `local` sandbox provider: Linux namespaces and overlays, without a daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError, SandboxStartError, UnsupportedError
from ramify.contracts.sandbox import (
    MIB,
    Capabilities,
    NetworkMode,
    ProbeReport,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.layer_scratch import LayerScratch
from ramify.planes.sandbox.layers import LayerStore
from ramify.planes.sandbox.local import cgroups, leftovers
from ramify.planes.sandbox.local.commands import Pipes
from ramify.planes.sandbox.local.demands import demanded_limits
from ramify.planes.sandbox.local.disk import DiskWatch
from ramify.planes.sandbox.local.dumps import Dumps
from ramify.planes.sandbox.local.ground import Ground, Masks, break_ground, host_image
from ramify.planes.sandbox.local.images import LocalImages
from ramify.planes.sandbox.local.inodes import keep_inodes
from ramify.planes.sandbox.local.live import Lab, LiveSandbox, Upper
from ramify.planes.sandbox.local.liveness import Liveness, try_capture
from ramify.planes.sandbox.local.namespaces import FIRST_ID
from ramify.planes.sandbox.local.nursery import Nursery
from ramify.planes.sandbox.local.probe import Machine, Mode
from ramify.planes.sandbox.local.process import probe
from ramify.planes.sandbox.local.sandbox import Birth, LocalSandbox
from ramify.planes.sandbox.local.wire import Message
from ramify.planes.sandbox.mounting import (
    UPPER,
    check_mounts,
    empty_scratch,
    make_scratch,
    on_overlay,
)
from ramify.planes.sandbox.nanny import DEFAULT_PATH

_DEFAULT_PIDS = 1024


class LocalProvider:
    """Makes sandboxes with namespaces (the `SandboxProvider` contract).

    Its mode is chosen by `probe`: `userns` (root, with a user namespace and id-mapped layers),
    `rootless`, or `plain` (root without a user namespace: weaker, capabilities are dropped).

    What `open` sandboxes reach goes through a proxy to public addresses; RAMIFY_MIRRORS
    (`host:port,...`) names package mirrors with private ones.

    Args:
        home: the directory for images and running sandboxes; not on an overlay file system.
        mode: use this mode instead of the strongest one that works (`plain` for root).
    """

    def __init__(self, home: Path | None = None, *, mode: Mode | None = None) -> None:
        self._mode = mode
        self._home = (home or ramify_home() / "sandbox").absolute()
        self._nursery = Nursery(self._home / "run")
        self._masks = Masks(self._home / "masks", (self._home, Path.cwd()))
        self._machine: Machine | None = None
        self._liveness: Liveness | None = None
        self._dumps: Dumps | None = None
        self._layout = cgroups.Layout(0, {})
        self._store: LayerStore | None = None
        self._lock = asyncio.Lock()
        self._images: LocalImages | None = None
        self._sandboxes: dict[str, LocalSandbox] = {}
        self._dropping: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """`local`."""
        return "local"

    async def probe(self) -> ProbeReport:
        """Whether it works on this machine, in which mode, and what to do if not."""
        machine = await self._find_machine()
        missing = sorted({"memory_mb", "cpus", "pids", "disk_mb"} - self.capabilities().limits)
        detail = machine.detail
        if missing and machine.mode != "none":
            detail += f"; limits not enforced here: {', '.join(missing)} (no writable cgroup)"
        return ProbeReport(machine.mode != "none", machine.mode, detail, machine.remedy)

    def capabilities(self) -> Capabilities:
        """What its sandboxes can do here. Call after `probe` or `prepare`."""
        limits = {"disk_mb", "pids"}
        if "memory" in self._layout.enforced:
            limits.add("memory_mb")
        if "cpu" in self._layout.enforced:
            limits.add("cpus")
        return Capabilities(
            isolation="namespaces",
            lockdown=True,
            snapshot="live" if self._liveness and not self._liveness.problem else "freeze",
            network=frozenset(NetworkMode),
            limits=frozenset(limits),
            host_root=True,
            images=True,
            builds=True,
            mounts=frozenset({"ro", "rw", "cow"}),
            users=self._machine is None
            or self._machine.mode != "rootless"
            or self._machine.user_map is not None,
        )

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The pristine image of a spec: of the store, the path of one, or the host's own root.

        An image that is not in the store, and one to be built, comes from a Docker daemon, once.
        """
        machine = await self._find_machine()
        self._check(spec)
        await self._require_live(machine, spec)
        if spec.host_root:
            return await asyncio.to_thread(host_image, self._masks)
        await self._open_store()
        assert self._images is not None
        return await self._images.prepare(spec)

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        """A new sandbox on `image` (default: the pristine one); see the contract."""
        machine = await self._find_machine()
        self._check(spec, has_image=image is not None)
        await self._require_live(machine, spec)
        return await self._create(machine, spec, image)

    async def _create(
        self, machine: Machine, spec: SandboxSpec, image: SandboxImage | None
    ) -> Sandbox:
        if image is not None and image.live and not spec.live:
            raise UnsupportedError(
                "the image holds processes, so its sandboxes need a spec with live; without them,"
                " give a copy of the image's record with live unset"
            )
        if image is None and not spec.host_root:
            image = await self.prepare(spec)
        store = await self._open_store()
        place = await self._nursery.ready(machine.mode)
        ground = await self._break_ground(store, image, place, machine)
        name, scratch = ground.name, ground.scratch
        changes = [scratch.upper, *(Path(m.scratch, UPPER) for m in spec.mounts if m.scratch)]
        try:
            make_scratch(spec.mounts, FIRST_ID if machine.mode == "userns" else None)
            message = await self._describe(machine, spec, ground)
            lab = self._lab(machine, place) if spec.live else None
            if lab and image and image.live:
                await asyncio.to_thread(_prepare_files, store, lab, image, ground)
            control = await self._nursery.start(name, message)
        except BaseException:
            self._drop_later(store, scratch)
            await self._nursery.end(name)
            empty_scratch(spec.mounts, upper=True)
            raise

        async def end(keep: bool) -> SandboxImage | None:
            self._sandboxes.pop(name, None)
            await self._nursery.end(name, keep_files=keep)
            frozen = None
            if keep:
                try:
                    frozen = await asyncio.to_thread(store.freeze, scratch)
                finally:
                    await self._nursery.end(name)
            else:
                self._drop_later(store, scratch)
            if spec.mounts:
                await asyncio.to_thread(empty_scratch, spec.mounts, upper=False)
            return frozen

        limits = spec.limits
        label = f"ramify-{place.name}-{name}"
        memory = self._layout.parents.get("memory") if limits.memory_mb else None
        watch = DiskWatch(changes, limits.disk_mb * MIB) if limits.disk_mb else None
        birth = Birth(
            id=name,
            spec=spec,
            capabilities=msgspec.structs.replace(
                self.capabilities(), snapshot="live" if lab else "freeze"
            ),
            control=control,
            null=self._nursery.null,
            env=self._environment(spec, ground),
            user=spec.user if spec.user is not None else ground.image.user,
            workdir=spec.workdir or ground.image.workdir or "/",
            memory_cgroups=[os.path.join(memory, label)] if memory else [],
            disk_watch=watch,
            pipes=Pipes(True, lab.owner) if lab else Pipes(),
            end=end,
        )
        live = LiveSandbox(birth, lab, Upper(scratch.upper, _parts(ground))) if lab else None
        sandbox = live or LocalSandbox(birth)
        self._sandboxes[name] = sandbox
        try:
            if spec.network.mode is not NetworkMode.NONE:
                await sandbox.reconnect(spec.network)
            if live and image and image.live:
                await live.bring_back(image)
        except BaseException:
            await sandbox.teardown()
            raise
        return sandbox

    async def discard(self, image: SandboxImage) -> None:
        """Free a frozen image that nothing runs on any more. Pristine images stay. Idempotent."""
        if not image.pristine:
            if self._dumps is not None:
                await asyncio.to_thread(self._dumps.remove, image.id)
            store = await self._open_store()
            await asyncio.to_thread(store.discard, image)

    async def sweep(self) -> int:
        """Remove what engines that died left behind; returns how many things were removed."""
        await self._find_machine()
        store = await self._open_store()
        removed = await asyncio.to_thread(leftovers.sweep, self._home / "run", self._layout)
        return removed + await asyncio.to_thread(store.sweep)

    async def aclose(self) -> None:
        """Tear down every sandbox still alive and release the provider. Idempotent."""
        async with asyncio.TaskGroup() as group:
            for sandbox in list(self._sandboxes.values()):
                group.create_task(sandbox.teardown())
        if self._dropping:
            await asyncio.wait(self._dropping)
        await self._nursery.aclose()
        if self._machine is not None:  # a spawner that died left its cgroups
            await asyncio.to_thread(leftovers.sweep, self._home / "run", self._layout)
        if self._images is not None:
            await self._images.aclose()
            self._images = None
        if self._store is not None:
            await asyncio.to_thread(self._store.close)
            self._store = None

    async def _find_machine(self) -> Machine:
        async with self._lock:
            if self._machine is None:
                self._layout = cgroups.discover()
                machine = await probe()
                if self._mode is not None and machine.mode != "none":
                    machine = machine._replace(
                        mode=self._mode, detail=f"{self._mode}, as asked for"
                    )
                if machine.mode != "none" and await asyncio.to_thread(on_overlay, self._home):
                    machine = _without_ground(self._home)
                self._machine = machine
                self._liveness = await asyncio.to_thread(Liveness, machine)
            return self._machine

    async def _require_live(self, machine: Machine, spec: SandboxSpec) -> None:
        """Refuse a live spec where processes cannot be captured. Raises UnsupportedError."""
        if not spec.live:
            return
        assert self._liveness is not None

        async def make(spec: SandboxSpec, image: SandboxImage | None) -> Sandbox:
            return await self._create(machine, spec, image)

        await self._liveness.require(spec, lambda: try_capture(make, self.discard))

    def _lab(self, machine: Machine, place: Path) -> Lab:
        assert self._liveness is not None
        if self._dumps is None or self._dumps.place != place / "dumps":
            self._dumps = Dumps(place / "dumps")
        is_root = machine.mode == "userns"
        return Lab(self._liveness.criu, self._dumps, FIRST_ID if is_root else None, is_root)

    async def _open_store(self) -> LayerStore:
        async with self._lock:
            if self._store is None:
                self._store = await asyncio.to_thread(LayerStore, self._home / "store")
                self._images = LocalImages(self._store)
            return self._store

    def _check(self, spec: SandboxSpec, *, has_image: bool = False) -> None:
        """Refuse what cannot be done. Raises UnsupportedError, ConfigError, SandboxStartError."""
        if self._machine is not None and self._machine.mode == "none":
            why = f"{self._machine.detail}; {self._machine.remedy}"
            raise SandboxStartError(f"the local sandbox does not work here: {why}")
        if spec.compose is not None:
            raise UnsupportedError("the local sandbox runs one container; use the docker sandbox")
        given = (spec.image is not None) + (spec.build is not None) + spec.host_root
        if not has_image and given != 1:
            raise ConfigError("exactly one of image, build and host_root must be given")
        check_mounts(spec, self.capabilities().mounts, self.name)
        missing = sorted(demanded_limits(spec.limits) - self.capabilities().limits)
        if missing:
            raise UnsupportedError(
                f"the local sandbox cannot enforce {', '.join(missing)} here: no cgroup is"
                " writable for this user; run as root or under a delegated cgroup"
                " (systemd-run --user --scope -p Delegate=yes), or leave the limit out"
            )

    async def _break_ground(
        self, store: LayerStore, image: SandboxImage | None, place: Path, machine: Machine
    ) -> Ground:
        """The directories of a new sandbox; a caller cancelled meanwhile leaves none."""
        shift = machine.mode == "userns"
        work = asyncio.ensure_future(
            asyncio.to_thread(break_ground, store, self._masks, image, place, shift)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:

            async def undo() -> None:
                ground = await work
                await self._nursery.end(ground.name)
                await asyncio.to_thread(store.drop, ground.scratch)

            self._later(undo())
            raise

    async def _describe(self, machine: Machine, spec: SandboxSpec, ground: Ground) -> Message:
        store = await self._open_store()
        overlays: list[tuple[str, list[str], str, str]] = []
        for part, layers in ground.layers:
            lowers = [lower for lower, _ours in layers]
            if machine.mode == "userns":
                lowers = [await self._as_seen(store, lower, ours) for lower, ours in layers]
            scratch = ground.scratch
            upper, work = (str(place / part.inside) for place in (scratch.upper, scratch.work))
            overlays.append((part.target, lowers, upper, work))
        limits = spec.limits
        pids = limits.pids or _DEFAULT_PIDS
        return {
            "mode": machine.mode,
            "root": ground.root,
            "overlays": overlays,
            "binds": list(ground.base.binds) if ground.base else [],
            "workdir": spec.workdir or ground.image.workdir or "",
            "lockdown": spec.lockdown,
            "live": spec.live,
            "process_limit": None if "pids" in self._layout.enforced else pids,
            "file_limit": limits.disk_mb * MIB if limits.disk_mb else None,
            "user_map": machine.user_map,
            "mounts": [(m.source, m.target, m.mode, m.scratch or "") for m in spec.mounts],
            "read_only": spec.read_only,
            "memory": limits.memory_mb * MIB if limits.memory_mb else None,
            "pids": pids,
            "cpus": limits.cpus,
        }

    async def _as_seen(self, store: LayerStore, lower: str, is_shifted: bool) -> str:
        """Where a layer is found with its owners shifted; frozen ones are shifted already."""
        if is_shifted:
            return lower
        for top in (str(store.layers_dir), str(self._masks.place)):
            if lower.startswith(top + "/"):
                return os.path.join(await self._nursery.shifted(top), lower[len(top) + 1 :])
        return await self._nursery.shifted(lower)

    def _environment(self, spec: SandboxSpec, ground: Ground) -> dict[str, str]:
        env = {"RAMIFY_ROOT": ""}
        if ground.base is not None and ground.base.path_entries:
            env["PATH"] = ":".join((DEFAULT_PATH, *ground.base.path_entries))
        return {**env, **ground.image.env, **spec.env}

    def _drop_later(self, store: LayerStore, scratch: LayerScratch) -> None:
        """Delete the files of a dead sandbox in a thread."""
        self._later(asyncio.to_thread(store.drop, scratch))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it in the background; `aclose` waits for it."""
        task = asyncio.ensure_future(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)


def _parts(ground: Ground) -> tuple[tuple[str, str], ...]:
    return tuple((part.target, part.inside) for part, _layers in ground.layers)


def _prepare_files(store: LayerStore, lab: Lab, image: SandboxImage, ground: Ground) -> None:
    """Check that the processes of a live image are there, and see to the files they write."""
    _place, record = lab.dumps.find(image.id)
    if lab.keeps_inodes and record.files:
        layer = store.layers_dir / store.lowers(image)[0]
        keep_inodes(record.files, _parts(ground), layer, ground.scratch.upper)


def _without_ground(home: Path) -> Machine:
    """A machine that has no place for layers at `home`."""
    detail = f"{home} lies on an overlay file system (the root of a container?), where overlayfs"
    detail += " cannot keep layers"
    return Machine("none", None, detail, "set RAMIFY_HOME to a directory on a volume or a tmpfs")
