"""The upper rungs of the sandbox ladder: what survives the processes of a sandbox, or all of it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    NetworkPolicy,
    Sandbox,
    SandboxImage,
    SandboxSpec,
)


@runtime_checkable
class Freezable(Protocol):
    """A sandbox whose file system can become an image."""

    async def freeze(self) -> SandboxImage:
        """Kill every process inside, then turn the file system into an image.

        The sandbox is spent: afterwards only `teardown` may be called. The image lives until
        `SandboxProvider.discard`. Raises: SandboxError, SandboxLostError.
        """
        ...


@runtime_checkable
class Reconnects(Protocol):
    """A sandbox whose network policy can be changed while it lives."""

    async def reconnect(self, policy: NetworkPolicy) -> None:
        """From now on the inside reaches what `policy` allows and nothing else.

        Connections that the new policy would not have allowed are cut. The variables that lead
        programs to a proxy are part of each later `exec` and `spawn`.

        Raises: UnsupportedError (this policy cannot be had), SandboxError, SandboxLostError.
        """
        ...


@runtime_checkable
class HandsOver(Protocol):
    """A sandbox whose file system can go on in place, where nobody else needs it.

    What `freeze` and one `create` on its image amount to, without the cost of either.
    """

    async def hand_over(self, spec: SandboxSpec) -> Sandbox:
        """Kill every process inside; the file system goes on as a sandbox of `spec`.

        None of the processes, environment or privileges of this one are left. This one is spent;
        tearing it down is the new one's business.

        Raises: UnsupportedError (this file system cannot become a sandbox of that spec in place;
        nothing has happened, so freeze and create), SandboxError, SandboxLostError.
        """
        ...


@runtime_checkable
class Snapshottable(Freezable, Protocol):
    """A sandbox whose processes can be captured together with its files, as one cut.

    Only where it was made with `SandboxSpec.live`.
    """

    async def checkpoint(self) -> SandboxImage:
        """Capture files and processes at one moment. The image has `live` set.

        The sandbox is spent, as after `freeze`: whoever goes on does so in a sandbox created from
        the image. There everything that ran runs on, with the same process ids, memory, open files
        and connections within the sandbox; what stood unread in the pipes and terminals of spawned
        processes stands in each copy's.

        Raises: UnsupportedError (something alive cannot be captured: names it; the sandbox goes on
        as if nothing had happened; never a silent downgrade), SandboxError, SandboxLostError.
        """
        ...

    def attach(self, pid: int) -> Process:
        """The process that was spawned as `pid` before the checkpoint this sandbox came from.

        Its streams are this sandbox's own. Raises: LookupError (no such process was captured).
        """
        ...
