"""The one way out of a sandbox without a network: a proxy whose policy can be changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy
from ramify.contracts.streams import ByteReader, ByteWriter, ConnectionHandler, Listener
from ramify.planes.sandbox.mirrors import with_mirrors
from ramify.planes.sandbox.proxy import PROXY_PORT, EgressProxy

Listen = Callable[[int, ConnectionHandler], Awaitable[Listener]]
"""Listens on a port inside. Raises: SandboxError if it is taken."""

_NOWHERE = NetworkPolicy()


class Gate:
    """Closed at first. The listener is made when it first opens, and stays from then on.

    Args:
        listen: listens inside the sandbox.
        peers: names inside that are reached without the proxy.
    """

    def __init__(self, listen: Listen, peers: Sequence[str] = ()) -> None:
        self._listen, self._peers = listen, peers
        self._policy = _NOWHERE
        self._proxy: EgressProxy | None = None
        self._port = 0
        self._served: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def policy(self) -> NetworkPolicy:
        """What goes through now."""
        return self._policy

    @property
    def env(self) -> dict[str, str]:
        """The variables that lead programs to the proxy; none while it is closed."""
        if self._proxy is None:
            return {}
        url = f"http://127.0.0.1:{self._port}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
        near = ",".join(("localhost", "127.0.0.1", "::1", *self._peers))
        return dict.fromkeys(names, url) | {"no_proxy": near, "NO_PROXY": near}

    async def set(self, policy: NetworkPolicy) -> None:
        """From now on `policy` holds, and the connections of another one are cut.

        Raises: ConfigError (an entry is no host), SandboxError, SandboxLostError.
        """
        async with self._lock:
            if policy == self._policy:
                return
            proxy = None
            if policy.mode is not NetworkMode.NONE:
                proxy = EgressProxy(with_mirrors(policy))
                if not self._port:
                    self._port = await self._open()
            self._policy, self._proxy = policy, proxy
            served = list(self._served)
            for task in served:
                task.cancel()
            if served:
                await asyncio.wait(served)

    async def _open(self) -> int:
        try:
            return (await self._listen(PROXY_PORT, self._serve)).port
        except SandboxLostError:
            raise
        except SandboxError:  # a process inside sits on it: nobody is led there then
            return (await self._listen(0, self._serve)).port

    async def _serve(self, reader: ByteReader, writer: ByteWriter) -> None:
        if self._proxy is None:
            writer.close()
            return
        task = asyncio.create_task(self._proxy.handle(reader, writer))
        self._served.add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._served.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
