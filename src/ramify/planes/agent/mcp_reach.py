"""How the engine reaches an HTTP server by the address that the agent's container has for it.

Addresses of MCP servers are meant from the agent's place (as in Harbor): `localhost` is the
sandbox itself, and is reached through `Sandbox.expose_port`. Any other host (a Compose service, a
public server) is reached by a program that runs inside, as the agent's user, and passes bytes on:
so names mean what they mean there, and the network policy of the sandbox holds. That takes bash,
nc or python3 inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urljoin, urlsplit

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, SandboxError
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Endpoint,
    Sandbox,
)
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.planes.agent.session import agent_user

_RELAY = """
for s in /bin/bash /usr/bin/bash /usr/local/bin/bash; do
  if [ -x "$s" ]; then
    exec "$s" -c 'exec 3<>"/dev/tcp/$0/$1" || exit 1; cat <&3 & exec cat >&3' "$1" "$2"
  fi
done
command -v nc >/dev/null && exec nc "$1" "$2"
command -v python3 >/dev/null && exec python3 -Ic '
import os, socket, sys, threading
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while d := os.read(0, 65536): s.sendall(d)
threading.Thread(target=up, daemon=True).start()
while d := s.recv(65536):
    while d: d = d[os.write(1, d):]
' "$1" "$2"
echo "no bash, nc or python3 to reach it with" >&2; exit 127
"""
_SETTLE_SEC = 2.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Route:
    """A way to one server.

    Attributes:
        address: where connections of the engine reach it.
        given: the server's own address.
        relay: what passes connections on, where it is not the sandbox itself.
    """

    address: Endpoint
    given: SplitResult
    relay: Relay | None = None

    @property
    def host_header(self) -> str:
        """The host as the server knows itself."""
        return self.given.netloc.rpartition("@")[2]

    @property
    def origin(self) -> str:
        """Scheme and host of the server's own address."""
        return f"{self.given.scheme}://{self.host_header}"

    def url(self, target: str) -> str:
        """Where the engine asks for a path (with its query) of the server."""
        return f"{self.given.scheme}://{self.address.host}:{self.address.port}{target}"

    def target(self, reference: str, base: str) -> str | None:
        """Path and query of what a server refers to from `base`; None on another server."""
        there = urlsplit(urljoin(f"{self.origin}{base}", reference))
        if (there.scheme, there.netloc) != (self.given.scheme, self.host_header):
            return None
        return there.path + (f"?{there.query}" if there.query else "")

    @property
    def trouble(self) -> str:
        """What the relay said last, if anything."""
        return self.relay.said if self.relay is not None else ""

    async def settled(self) -> None:
        """Wait until nothing inside is left of connections that were closed; a bounded time."""
        if self.relay is not None:
            await self.relay.settled()

    async def aclose(self) -> None:
        """End what passes connections on. Idempotent."""
        if self.relay is not None:
            await self.relay.aclose()


async def reach(sandbox: Sandbox, ctx: Context, url: str) -> Route:
    """A way to a server. Raises ConfigError (no address of a server), SandboxError."""
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    if not parts.hostname or not port:
        raise ConfigError(
            f"{url!r} is no address of an MCP server; write http://host:port/path",
            file=ctx.task.task_id,
            field="mcp_servers",
        )
    if _is_loopback(parts.hostname):
        return Route(await sandbox.expose_port(port), parts)
    relay = Relay(sandbox, agent_user(ctx), parts.hostname, port)
    return Route(await relay.start(), parts, relay)


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


class Relay:
    """Listens on the engine's loopback and passes each connection on from inside a sandbox.

    Attributes:
        said: the end of what a connection inside last failed with.
    """

    def __init__(self, sandbox: Sandbox, user: str | None, host: str, port: int) -> None:
        self._sandbox, self._user, self._host, self._port = sandbox, user, host, port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.said = ""

    async def start(self) -> Endpoint:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Endpoint(host, port)

    async def settled(self) -> None:
        """Wait, a bounded time, until no connection is open."""
        if tasks := set(self._tasks):
            await asyncio.wait(tasks, timeout=_SETTLE_SEC)

    async def aclose(self) -> None:
        """End the listener and every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: ByteReader, writer: ByteWriter) -> None:
        argv = ["/bin/sh", "-c", _RELAY, "sh", self._host, str(self._port)]
        try:
            process = await self._sandbox.spawn(argv, user=self._user)
            try:
                await _until_first(
                    _up(reader, process), _down(process, writer), self._hear(process)
                )
            finally:
                await process.aclose()
        except (SandboxError, ConnectionError, BrokenPipeError) as error:
            self.said = str(error)  # The connection ends, which is what its user sees.
        finally:
            writer.close()

    async def _hear(self, process: Process) -> None:
        """Keep what the program says, for as long as it runs."""
        while data := await process.read_err():
            self.said = (self.said + data.decode(errors="replace"))[-500:]
        await asyncio.Event().wait()


async def _until_first(*jobs: Coroutine[None, None, None]) -> None:
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


async def _up(reader: ByteReader, process: Process) -> None:
    while data := await reader.read(65536):
        await process.write(data)


async def _down(process: Process, writer: ByteWriter) -> None:
    while data := await process.read():
        writer.write(data)
        await writer.drain()
