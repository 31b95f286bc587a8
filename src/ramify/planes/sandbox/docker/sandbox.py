"""A running container, as the `Sandbox` contract."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import ramify.planes.sandbox.docker.commands as commands
import ramify.planes.sandbox.docker.streams as streams
import ramify.planes.sandbox.docker.trees as trees
from ramify.contracts.errors import SandboxError, SandboxLostError, UnsupportedError
from ramify.contracts.process import (
    Process,
    PtySize,
)
from ramify.contracts.sandbox import (
    MIB,
    Capabilities,
    Endpoint,
    ExecResult,
    NetworkMode,
    NetworkPolicy,
    SandboxImage,
    SandboxSpec,
    TransferLimits,
    TransferReport,
)
from ramify.contracts.streams import ConnectionHandler, Listener
from ramify.planes.sandbox.docker.launch import LOCKDOWN_NUMBERS, Plan
from ramify.planes.sandbox.docker.link import Link
from ramify.planes.sandbox.docker.networks import check_policy
from ramify.planes.sandbox.gate import Gate

_SETTLE_SEC = 15.0
_TEARDOWN_SEC = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Ties:
    """What a sandbox has its provider do.

    `remove` removes the container, `commit` turns it into an image, `adopt` notes that another
    object stands for it from now on, `cut_off` takes it off the bridge.
    """

    remove: Callable[[], Awaitable[None]]
    commit: Callable[[], Awaitable[SandboxImage]]
    adopt: Callable[[DockerSandbox], None]
    cut_off: Callable[[], Awaitable[None]]


class DockerSandbox:
    """One container. Made by `DockerProvider.create`."""

    def __init__(self, plan: Plan, link: Link, capabilities: Capabilities, ties: Ties) -> None:
        self._plan, self._link, self._capabilities = plan, link, capabilities
        self._ties = ties
        self._forwards: list[streams.PortForward] = []
        self._listeners: list[streams.ChannelListener] = []
        peers = plan.seat.peers if plan.seat is not None else ()
        self._gate = Gate(self.serve_in, peers)
        self._on_bridge = plan.spec.network.mode is NetworkMode.OPEN
        self._frozen = False
        self._ended = False

    @property
    def id(self) -> str:
        """The container's name."""
        return self._plan.name

    @property
    def spec(self) -> SandboxSpec:
        """What it was made from."""
        return self._plan.spec

    async def connect_proxy(self) -> None:
        """Give an allow-listed sandbox its only way out. Called once, by the provider."""
        if self.spec.network.mode is NetworkMode.ALLOWLIST:
            await self._gate.set(self.spec.network)

    async def reconnect(self, policy: NetworkPolicy) -> None:
        """From now on the inside reaches what `policy` allows; see the contract.

        What is `open` from the start is a network, which is left for good when the policy changes;
        what opens later is a proxy for HTTP(S), as in a `local` sandbox.

        Raises: UnsupportedError (in a Compose project), ConfigError, SandboxError,
        SandboxLostError.
        """
        self._alive()
        check_policy(policy)
        if policy == (self.spec.network if self._on_bridge else self._gate.policy):
            return
        if self._plan.seat is not None:
            raise UnsupportedError("the network of a Compose project stays as it began")
        if self._on_bridge:
            await self._ties.cut_off()
            self._on_bridge = False
        await self._gate.set(policy)

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_sec: float | None = None,
        output_limit: int = 16 * MIB,
        kill_leftovers: bool = False,
    ) -> ExecResult:
        """Run a command to its end; see the contract. Raises: SandboxLostError."""
        return await commands.run(
            self._alive(),
            self._line(command, user, cwd, env),
            stdin=stdin,
            timeout_sec=timeout_sec,
            output_limit=output_limit,
            kill_leftovers=kill_leftovers,
        )

    async def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        pty: PtySize | None = None,
    ) -> Process:
        """Start a command with streams. Raises: SandboxError, SandboxLostError."""
        return await commands.spawn(self._alive(), self._line(command, user, cwd, env), pty)

    async def upload(
        self,
        local: Path,
        remote: str,
        *,
        owner: str | None = None,
        mode: int | None = None,
        clear: bool = False,
    ) -> None:
        """Copy a host tree in; see the contract. Raises: SandboxError, SandboxLostError."""
        _absolute(remote)
        await trees.upload(self._alive(), local, remote, owner=owner, mode=mode, clear=clear)

    async def download(
        self, remote: str, local: Path, *, limits: TransferLimits | None = None
    ) -> TransferReport:
        """Copy a hostile tree to the host; see the contract for guarantees and errors."""
        _absolute(remote)
        return await trees.download(self._alive(), remote, local, limits or TransferLimits())

    async def expose_port(self, port: int) -> Endpoint:
        """A loopback address of the host whose connections reach `port` inside."""
        forward = streams.PortForward(self._alive(), port)
        endpoint = await forward.start()
        self._forwards.append(forward)
        return endpoint

    async def serve_in(self, port: int, handler: ConnectionHandler) -> Listener:
        """Listen inside; see the contract. Raises: SandboxError, SandboxLostError."""
        listener = await streams.listen_inside(self._alive(), port, handler)
        self._listeners.append(listener)
        return listener

    def capabilities(self) -> Capabilities:
        """What this sandbox can do."""
        return self._capabilities

    async def freeze(self) -> SandboxImage:
        """Kill everything inside and commit the file system; costs time in its modified bytes.

        Raises: SandboxError (also where the image declares volumes), SandboxLostError.
        """
        link = self._alive()
        if self.spec.mounts:
            raise UnsupportedError(
                "a sandbox with mounts cannot be frozen: an image holds nothing of what they show"
            )
        self._frozen = True
        try:
            await self._settle(link, _SETTLE_SEC)
            return await self._ties.commit()
        finally:
            await self.teardown()

    async def hand_over(self, spec: SandboxSpec) -> DockerSandbox:
        """Go on as a sandbox of `spec` in the same container; see the contract.

        Raises: UnsupportedError (another network or other limits, or a project's services),
        SandboxError, SandboxLostError.
        """
        link, own = self._alive(), self.spec
        allowlist = NetworkMode.ALLOWLIST in (own.network.mode, spec.network.mode)
        changed = allowlist or self._gate.policy.mode is not NetworkMode.NONE
        changed = changed or self._on_bridge != (own.network.mode is NetworkMode.OPEN)
        if own.network != spec.network or own.limits != spec.limits or changed:
            raise UnsupportedError("a container keeps its network and its limits")
        if own.mounts or spec.mounts or own.read_only != spec.read_only:
            raise UnsupportedError("a container keeps its mounts, and whether it can be written to")
        if self._plan.seat is not None or not spec.lockdown:
            raise UnsupportedError("only a container of its own can be locked down in place")
        self._frozen = self._ended = True
        heir = DockerSandbox(
            dataclasses.replace(self._plan, spec=spec), link, self._capabilities, self._ties
        )
        self._ties.adopt(heir)
        try:
            await self._settle(link, _SETTLE_SEC, lock=True)
            for part in (*self._forwards, *self._listeners):
                await part.aclose()
        except BaseException:
            await asyncio.shield(heir.teardown())
            raise
        return heir

    async def teardown(self) -> None:
        """Kill everything inside, at once; the container's record is removed in the background.

        Idempotent. `DockerProvider.aclose` waits for the removal; so does this where there are
        mounts.
        """
        if self._ended:
            return
        self._ended = True
        try:
            if not self._frozen:
                await self._settle(self._link, _TEARDOWN_SEC)
        except SandboxError:
            pass  # it is gone already, or hangs: removing it ends it either way
        finally:
            removal = asyncio.ensure_future(self._ties.remove())
            for part in (*self._forwards, *self._listeners, self._link):
                await asyncio.shield(part.aclose())
            if self.spec.mounts:  # their directories are the caller's from now on
                await asyncio.wait([removal])

    async def _settle(self, link: Link, deadline_sec: float, *, lock: bool = False) -> None:
        """Kill every process but the supervisor, and take the privileges of what comes after.

        Raises: SandboxError, SandboxLostError.
        """
        # Whoever waits for a command learns that the sandbox ended, not how we ended the command.
        link.abandon(f"the sandbox {self.id} ended")
        channel = link.open({"op": "settle", "keep": LOCKDOWN_NUMBERS if lock else None})
        try:
            async with asyncio.timeout(deadline_sec):
                event = await channel.until("settled", "failed")
        except TimeoutError:
            raise SandboxError("the sandbox's processes could not be killed in time") from None
        finally:
            channel.close()
        if event["event"] == "failed":
            raise SandboxError("the sandbox holds processes that cannot be killed")

    def _alive(self) -> Link:
        if self._frozen or self._ended:
            how = "was frozen" if self._frozen else "was torn down"
            raise SandboxLostError(f"the sandbox {self.id} {how}")
        return self._link

    def _line(
        self,
        command: str | Sequence[str],
        user: str | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
    ) -> commands.CommandLine:
        spec, image = self.spec, self._plan.image
        return commands.CommandLine(
            argv=commands.argv_of(command),
            user=user or spec.user or image.user or "root",
            cwd=cwd or spec.workdir or image.workdir or "/",
            env={**self._gate.env, **image.env, **spec.env, **(env or {})},
        )


def _absolute(remote: str) -> None:
    if not remote.startswith("/"):
        raise ValueError(f"{remote!r} is not an absolute path")
