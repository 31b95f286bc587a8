"""A sandbox of the `local` and `bare` providers, from the engine's side."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    NetworkPolicy,
    SandboxImage,
    SandboxSpec,
    TransferLimits,
    TransferReport,
)
from ramify.contracts.streams import ConnectionHandler, Listener
from ramify.planes.sandbox.gate import Gate
from ramify.planes.sandbox.local import cgroups, network, transfer
from ramify.planes.sandbox.local.commands import Pipes, Runner, RunOptions
from ramify.planes.sandbox.local.control import Control
from ramify.planes.sandbox.local.disk import DiskWatch
from ramify.planes.sandbox.local.job import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a provider hands a new sandbox.

    `env`, `user` and `workdir` are the defaults of its commands. `end` ends it: it kills
    everything and removes all of it, or (given True) keeps the files and returns their image.
    `pipes` says how its commands' pipes are made. `locate` turns a path of the inside into one
    that the supervisor understands.
    """

    id: str
    spec: SandboxSpec
    capabilities: Capabilities
    control: Control
    null: int
    env: dict[str, str]
    user: str | None
    workdir: str
    memory_cgroups: list[str] = field(default_factory=list[str])
    disk_watch: DiskWatch | None = None
    pipes: Pipes = Pipes()
    locate: Callable[[str], str] = str
    end: Callable[[bool], Awaitable[SandboxImage | None]]


class LocalSandbox:
    """An isolated file system and process space (the `Sandbox` contract)."""

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self.control = birth.control
        self.runner = Runner(
            birth.control, birth.null, self._oom_kills, self._disk_kills, birth.pipes
        )
        self._servers: list[network.Server] = []
        self._gate = Gate(self.serve_in)
        self._exposed: dict[int, Endpoint] = {}
        self._ending: asyncio.Task[SandboxImage | None] | None = None
        self._kept = False
        if birth.disk_watch is not None:
            birth.disk_watch.start(self._kill_everything)

    @property
    def id(self) -> str:
        """Unique id, also the label on everything that belongs to it."""
        return self._birth.id

    @property
    def spec(self) -> SandboxSpec:
        """What it was made from."""
        return self._birth.spec

    def capabilities(self) -> Capabilities:
        """What this sandbox can do."""
        return self._birth.capabilities

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
        """Run a command to its end; see the contract. Raises SandboxLostError."""
        self.check_alive()
        options = RunOptions(stdin, timeout_sec, output_limit, kill_leftovers)
        return await self.runner.run(self._request(command, user, cwd, env), options)

    async def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        pty: PtySize | None = None,
    ) -> Process:
        """Start a command with streams. Raises SandboxError if it cannot be started."""
        self.check_alive()
        return await self.runner.start(self._request(command, user, cwd, env), pty)

    async def upload(
        self,
        local: Path,
        remote: str,
        *,
        owner: str | None = None,
        mode: int | None = None,
        clear: bool = False,
    ) -> None:
        """Copy a host file, or the content of a host directory, to `remote`; see the contract."""
        self.check_alive()
        how = transfer.Placing(self._inside(remote), owner, mode, clear)
        await transfer.upload(self.control, local, how)

    async def download(
        self, remote: str, local: Path, *, limits: TransferLimits | None = None
    ) -> TransferReport:
        """Copy a file, or the content of a directory, to the host; see the contract."""
        self.check_alive()
        bounds = limits or TransferLimits()
        return await transfer.download(self.control, self._inside(remote), local, bounds)

    async def expose_port(self, port: int) -> Endpoint:
        """A host address whose connections reach 127.0.0.1:`port` inside, until teardown."""
        self.check_alive()
        if port not in self._exposed:
            endpoint, server = await network.expose(self.control, port)
            self._exposed[port] = endpoint
            self._servers.append(server)
        return self._exposed[port]

    async def serve_in(self, port: int, handler: ConnectionHandler) -> Listener:
        """Listen on 127.0.0.1:`port` inside; each connection is served by `handler` here."""
        self.check_alive()
        server = await network.listen_inside(self.control, port, handler)
        self._servers.append(server)
        return server

    async def reconnect(self, policy: NetworkPolicy) -> None:
        """From now on the inside reaches what `policy` allows; see the contract.

        Whatever the policy was, connections of another one are cut.
        """
        self.check_alive()
        if self._birth.capabilities.isolation == "none":
            raise UnsupportedError("this sandbox shares the network of the host")
        await self._gate.set(policy)

    async def freeze(self) -> SandboxImage:
        """Kill every process inside, then turn the file system into an image; see the contract."""
        self.check_alive()
        if self._birth.capabilities.snapshot == "none":
            raise UnsupportedError("this sandbox has no file system of its own to freeze")
        if self.spec.mounts:
            raise UnsupportedError(
                "a sandbox with mounts cannot be frozen: an image holds nothing of what they show"
            )
        image = await self.end(keep=True)
        if image is None:
            raise SandboxLostError("the sandbox ended before it was frozen")
        return image

    async def teardown(self) -> None:
        """End it and remove everything that belongs to it. Idempotent, bounded in time."""
        try:
            await self.end(keep=False)
        except SandboxLostError:
            raise
        except SandboxError:
            if not self._kept:  # else it is gone, and whoever froze it was told what went wrong
                raise

    async def end(self, *, keep: bool) -> SandboxImage | None:
        """End it once, and keep its files if asked; a caller's cancellation does not stop it."""
        if self._ending is None:
            self._kept = keep
            self._ending = asyncio.ensure_future(self._finish(keep))
        return await asyncio.shield(self._ending)

    async def _finish(self, keep: bool) -> SandboxImage | None:
        if self._birth.disk_watch is not None:
            await self._birth.disk_watch.aclose()
        for server in self._servers:
            await server.aclose()
        self.control.close()
        self.runner.close()
        return await self._birth.end(keep)

    def check_alive(self) -> None:
        """Raise SandboxLostError if it is gone."""
        if self._ending is not None or self.control.lost:
            raise SandboxLostError(f"the sandbox {self.id} is gone")

    def _inside(self, path: str) -> str:
        if not path.startswith("/"):
            raise SandboxError(f"the path {path!r} inside a sandbox must be absolute")
        return self._birth.locate(path)

    def _request(
        self,
        command: str | Sequence[str],
        user: str | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
    ) -> Request:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if not argv:
            raise SandboxError("the command is empty")
        place = posixpath.join(self._birth.workdir, cwd or "")
        return Request(
            argv,
            user if user is not None else self._birth.user,
            self._birth.locate(place),
            {**self._gate.env, **self._birth.env, **(env or {})},
        )

    def _oom_kills(self) -> int:
        return cgroups.oom_kills(self._birth.memory_cgroups)

    def _disk_kills(self) -> int:
        return self._birth.disk_watch.kills if self._birth.disk_watch is not None else 0

    def _kill_everything(self) -> None:
        self.control.order({"op": "kill_all"})
