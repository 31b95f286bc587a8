"""The `bare` sandbox provider: processes on the host itself. It does not isolate."""

from __future__ import annotations

import asyncio
import os
import posixpath
from pathlib import Path

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import (
    MIB,
    Capabilities,
    NetworkMode,
    ProbeReport,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.planes.sandbox.local import cgroups, leftovers
from ramify.planes.sandbox.local.demands import demanded_limits
from ramify.planes.sandbox.local.disk import DiskWatch
from ramify.planes.sandbox.local.nursery import Nursery
from ramify.planes.sandbox.local.sandbox import Birth, LocalSandbox
from ramify.planes.sandbox.local.wire import Message
from ramify.planes.sandbox.mounting import check_mounts
from ramify.planes.sandbox.nanny import DEFAULT_PATH

_STANDARD = ("tmp", "root")
_MODE = "bare"


class BareProvider:
    """Runs commands as plain processes of this user (the `SandboxProvider` contract, in part).

    There is no isolation: commands see and can change the host, and share its network. What
    stands: everything a command starts is found and killed, and a dead engine leaves nothing
    running. Each sandbox has a directory of its own that stands for `/`: every absolute path
    given to the API (cwd, upload, download, workdir) is taken below it, and commands find it as
    `$RAMIFY_ROOT` (empty in other providers), so `$RAMIFY_ROOT/app` works everywhere. Unless this
    process is root's, its user is the only one, and takes root's place.

    Args:
        home: the directory for those; default as for `LocalProvider`.
        allow_unenforced: accept specs that ask for lockdown, no or limited network, or limits
            that cannot be enforced here, without enforcing them. Else they are refused.
    """

    def __init__(self, home: Path | None = None, *, allow_unenforced: bool = False) -> None:
        self._runs = (home or ramify_home() / "sandbox").absolute() / "bare"
        self._nursery = Nursery(self._runs)
        self._allow = allow_unenforced
        self._layout = cgroups.Layout(0, {})
        self._sandboxes: dict[str, LocalSandbox] = {}

    @property
    def name(self) -> str:
        """`bare`."""
        return "bare"

    async def probe(self) -> ProbeReport:
        """Always works; says that it does not isolate."""
        self._layout = cgroups.discover()
        return ProbeReport(
            True, "bare", "no isolation: commands run on this machine as this user", ""
        )

    def capabilities(self) -> Capabilities:
        """What its sandboxes can do here. Call after `probe` or `prepare`."""
        names = {"memory": "memory_mb", "cpu": "cpus", "pids": "pids"}
        limits = {names[controller] for controller in self._layout.enforced}
        return Capabilities(
            isolation="none",
            lockdown=False,
            snapshot="none",
            network=frozenset({NetworkMode.OPEN}),
            limits=frozenset({"disk_mb", *limits}),
            host_root=True,
            images=False,
            builds=False,
            users=os.geteuid() == 0,
        )

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The host as it is. Raises: UnsupportedError."""
        self._layout = cgroups.discover()
        self._check(spec)
        return SandboxImage("bare", self.name, "bare")

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        """A new directory to work in, with a supervisor; see the class. Raises as `prepare`."""
        await self.prepare(spec)
        if image is not None and image.id != "bare":
            raise UnsupportedError(f"the bare sandbox cannot start from the image {image.id}")
        await self._nursery.ready(_MODE)
        name, root = await asyncio.to_thread(self._make_place, spec.workdir or "/")
        limits = spec.limits
        offered = self.capabilities().limits
        message: Message = {
            "mode": _MODE,
            "root": root,
            "overlays": [],
            "binds": [],
            "workdir": "",
            "lockdown": False,
            "live": False,
            "process_limit": None,
            "file_limit": limits.disk_mb * MIB if limits.disk_mb else None,
            "user_map": None,
            "mounts": [],
            "read_only": False,
            "memory": limits.memory_mb * MIB if limits.memory_mb else None,
            "pids": limits.pids,
            "cpus": limits.cpus,
        }
        control = await self._nursery.start(name, message)

        async def end(_keep: bool) -> None:
            self._sandboxes.pop(name, None)
            await self._nursery.end(name)

        label = f"ramify-{Path(root).parent.parent.name}-{name}"
        has_memory = limits.memory_mb is not None and "memory_mb" in offered
        sandbox = LocalSandbox(
            Birth(
                id=name,
                spec=spec,
                capabilities=self.capabilities(),
                control=control,
                null=self._nursery.null,
                env=_environment(root) | spec.env,
                user=spec.user,
                workdir=spec.workdir or "/",
                memory_cgroups=(
                    [os.path.join(self._layout.parents["memory"], label)] if has_memory else []
                ),
                disk_watch=DiskWatch([Path(root)], limits.disk_mb * MIB)
                if limits.disk_mb
                else None,
                locate=lambda path: _locate(root, path),
                end=end,
            )
        )
        self._sandboxes[name] = sandbox
        return sandbox

    async def discard(self, image: SandboxImage) -> None:
        """Nothing to free: there are no images."""

    async def sweep(self) -> int:
        """Remove what engines that died left behind; returns how many things were removed."""
        return await asyncio.to_thread(leftovers.sweep, self._runs, cgroups.discover())

    async def aclose(self) -> None:
        """Tear down every sandbox still alive and release the provider. Idempotent."""
        for sandbox in list(self._sandboxes.values()):
            await sandbox.teardown()
        await self._nursery.aclose()

    def _make_place(self, workdir: str) -> tuple[str, str]:
        name, root = self._nursery.new_place()
        for directory in (*_STANDARD, workdir.lstrip("/")):
            Path(root, directory).mkdir(parents=True, exist_ok=True)
        return name, root

    def _check(self, spec: SandboxSpec) -> None:
        if spec.image is not None or spec.build is not None:
            raise UnsupportedError("the bare sandbox has no images; use the local or docker one")
        if not spec.host_root:
            raise ConfigError("the bare sandbox has only the host's root: host_root must be true")
        if spec.live:
            raise UnsupportedError("the bare sandbox cannot capture processes; use the local one")
        check_mounts(spec, self.capabilities().mounts, self.name)
        if spec.read_only:
            raise UnsupportedError("the bare sandbox cannot keep its root read-only")
        if self._allow:
            return
        demands: list[str] = []
        if spec.lockdown:
            demands.append("lockdown")
        if spec.network.mode is not NetworkMode.OPEN:
            demands.append(f"network = {spec.network.mode.value}")
        missing = demanded_limits(spec.limits) - self.capabilities().limits
        demands += sorted(missing)
        if demands:
            raise UnsupportedError(
                f"the bare sandbox cannot enforce {', '.join(demands)}; use the local or docker"
                " sandbox, or BareProvider(allow_unenforced=True) to do without"
            )


def _environment(root: str) -> dict[str, str]:
    return {
        "RAMIFY_ROOT": root,
        "HOME": f"{root}/root",
        "TMPDIR": f"{root}/tmp",
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
    }


def _locate(root: str, path: str) -> str:
    """A path of the inside on the host: below `root`, unless it is there already."""
    clean = posixpath.normpath(path)
    if clean == root or clean.startswith(f"{root}/"):
        return clean
    return root + (clean if clean != "/" else "")
