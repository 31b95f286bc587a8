"""Whether processes can be captured on this machine: looked up cheaply, then tried once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from ramify.contracts.errors import RamifyError, SandboxError, UnsupportedError
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxSpec
from ramify.planes.sandbox.local.criu import find_criu, version_problem
from ramify.planes.sandbox.local.probe import Machine

_TRIAL_SEC = 60.0
_SHELL = "read kept; echo ready; read _again; echo $kept"

Trial = Callable[[], Awaitable[None]]


async def try_capture(
    make: Callable[[SandboxSpec, SandboxImage | None], Awaitable[Sandbox]],
    discard: Callable[[SandboxImage], Awaitable[None]],
) -> None:
    """Capture a shell with a variable on the host's root, and ask its copy for it.

    Raises: RamifyError (something of it failed).
    """
    spec = SandboxSpec(host_root=True, live=True)
    first = await make(spec, None)
    try:
        assert isinstance(first, Snapshottable)
        process = await first.spawn(["/bin/sh", "-c", _SHELL])
        await process.write(b"kept\n")
        await process.read()
        image = await first.checkpoint()
    finally:
        await first.teardown()
    try:
        second = await make(spec, image)
        try:
            assert isinstance(second, Snapshottable)
            copy = second.attach(process.pid)
            await copy.write(b"\n")
            said = await copy.read()
        finally:
            await second.teardown()
    finally:
        await discard(image)
    if said != b"kept\n":
        raise SandboxError(f"the copy of a shell answered {said!r}")


class Liveness:
    """What is known about live checkpoints here.

    Args:
        machine: the mode of this machine's sandboxes.
    """

    def __init__(self, machine: Machine) -> None:
        self._criu, self._problem = None, ""
        if machine.mode in ("userns", "rootless"):
            self._criu, self._problem = find_criu()
        else:
            self._problem = "they need a user namespace"
            if machine.mode == "plain":
                self._problem += f" ({machine.remedy})" if machine.remedy else ""
        self._lock = asyncio.Lock()
        self._tried = False

    @property
    def problem(self) -> str:
        """Why not, as far as known; "" while nothing is known against it."""
        return self._problem

    @property
    def criu(self) -> Path:
        """CRIU's directory. Call after `require`."""
        assert self._criu is not None
        return self._criu

    async def require(self, spec: SandboxSpec, trial: Trial) -> None:
        """Check that a spec with `live` can be met; the first time by `trial`, a real capture.

        Raises: UnsupportedError.
        """
        if spec.lockdown:
            raise UnsupportedError(
                "live and lockdown exclude each other: processes under a filter of system calls"
                " cannot be captured"
            )
        async with self._lock:
            if not self._tried and not self._problem:
                self._problem = await self._try(trial)
                self._tried = True
        if self._problem:
            raise UnsupportedError(
                f"live checkpoints of the local sandbox do not work here: {self._problem}"
            )

    async def _try(self, trial: Trial) -> str:
        problem = await asyncio.to_thread(version_problem, self.criu)
        if problem:
            return problem
        try:
            async with asyncio.timeout(_TRIAL_SEC):
                await trial()
        except (RamifyError, TimeoutError) as error:
            return f"a trial of CRIU in {self.criu} failed: {error or 'it took too long'}"
        return ""
