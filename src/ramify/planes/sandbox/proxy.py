"""The only way out of a sandbox: an HTTP proxy that serves its connections on the engine's side.

Give `EgressProxy.handle` to `Sandbox.serve_in(PROXY_PORT, ...)` and set the usual proxy variables
inside. It speaks CONNECT and absolute-form HTTP/1.1, one request per connection. Names are
resolved here, once, and the checked address is the one connected to, so that a name cannot change
its meaning between check and use.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from ramify.contracts.sandbox import NetworkPolicy
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.planes.sandbox.egress import (
    MachineResolver,
    Resolver,
    compile_rules,
    parse_authority,
    reachable,
)
from ramify.planes.sandbox.http1 import BadMessage, Body, Source, read_head

PROXY_PORT = 3128
"""The port that sandboxes find the proxy on."""

_CHUNK = 64 * 1024
_MAX_DENIED = 100
_CONNECT_SEC = 15.0
_HEAD_SEC = 30.0
_TURN_SEC = 60.0
_REASONS = {
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_URL = re.compile(r"(?i:http)://([^/?#@]*)([/?][^#]*)?(?:#.*)?")


class _Refusal(Exception):  # noqa: N818  (an answer, not an error of ours)
    """Answer with a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status, line)
        self.status, self.line = status, line


class EgressProxy:
    """Serves connections out of one sandbox under a NetworkPolicy.

    Loopback, private, link-local, multicast and metadata addresses, and every address of this
    machine, are refused unless an entry of the policy names exactly that `host:port`.

    Args:
        policy: what may be reached. Raises ConfigError for an entry that is not a host.
        idle_sec: a connection without traffic for this long is closed.
        max_connections: connections served at a time; package managers open hundreds at once, so
            more wait for their turn.
        max_waiting: connections that wait; more, and those that waited a minute, are answered
            with 503.
        resolver: how names become addresses (default: this machine's resolver).
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        *,
        idle_sec: float = 300.0,
        max_connections: int = 256,
        max_waiting: int = 512,
        resolver: Resolver | None = None,
    ) -> None:
        self._rules = compile_rules(policy)
        self._idle_sec = idle_sec
        self._turns = asyncio.Semaphore(max_connections)
        self._may_wait = max_waiting
        self._resolver = resolver or MachineResolver()
        self._denied: dict[str, None] = {}

    @property
    def denied(self) -> tuple[str, ...]:
        """The first 100 distinct `host:port` that were refused, in order."""
        return tuple(self._denied)

    async def handle(self, reader: ByteReader, writer: ByteWriter) -> None:
        """Serve one connection to its end, and close it. Errors of peers never get out."""
        try:
            async with self._turn():
                await self._serve(Source(reader), writer)
        except _Refusal as refusal:
            await _answer(writer, refusal.status, refusal.line)
        except BadMessage as bad:
            await _answer(writer, 400, str(bad))
        except (OSError, EOFError):
            pass  # a peer went away in the middle; there is nobody left to tell
        finally:
            writer.close()

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """One of the connections that are served; there may be none free for a while."""
        refusal = _Refusal(503, "too many connections out of this sandbox at once")
        if self._turns.locked():
            if self._may_wait <= 0:
                raise refusal
            self._may_wait -= 1
            try:
                async with asyncio.timeout(_TURN_SEC):
                    await self._turns.acquire()
            except TimeoutError:
                raise refusal from None
            finally:
                self._may_wait += 1
        else:
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    async def _serve(self, source: Source, writer: ByteWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_SEC):
                head = await read_head(source, response=False)
        except TimeoutError:
            raise _Refusal(400, "no complete request in time") from None
        method, target, version = head.start
        if method == "CONNECT":
            parsed = parse_authority(target, None)
            if parsed is None or parsed[1] is None:
                raise _Refusal(400, "CONNECT wants host:port")
            async with self._upstream(parsed[0], parsed[1]) as server:
                await _Traffic((source, writer), server, self._idle_sec).tunnel()
            return
        match = _URL.fullmatch(target)
        parsed = parse_authority(match[1], 80) if match else None
        if match is None or parsed is None or parsed[1] is None:
            raise _Refusal(400, "this is an HTTP proxy: send CONNECT host:port or GET http://host/")
        path = match[2] or "/"
        if path.startswith("?"):
            path = "/" + path
        body = Body.of_request(head)
        request = head.forwarded(f"{method} {path} {version}", host=match[1])
        async with self._upstream(parsed[0], parsed[1]) as server:
            traffic = _Traffic((source, writer), server, self._idle_sec)
            await traffic.exchange(method, request, body)

    # Connecting

    @asynccontextmanager
    async def _upstream(
        self, host: str, port: int
    ) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if not self._rules.allows(host, port):
            self._deny(shown)
            raise _Refusal(403, f"{shown} is not allowed by this sandbox's network policy")
        try:
            async with asyncio.timeout(_CONNECT_SEC):
                addresses = await self._resolver(host, port)
        except (OSError, UnicodeError):
            raise _Refusal(502, f"{shown}: the name cannot be resolved") from None
        if not self._rules.trusts(host, port):
            addresses = reachable(addresses)
            if not addresses:
                self._deny(shown)
                raise _Refusal(
                    403,
                    f"{shown} has no public address; only an allowed_hosts entry of exactly"
                    " this host:port lets a private one through",
                )
        reader, writer = await _connect(addresses, port, shown)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def _deny(self, shown: str) -> None:
        if len(self._denied) < _MAX_DENIED:
            self._denied[shown] = None


class _Traffic:
    """The two directions of one connection, from the head of the request on.

    Over when the server's side ends, or when nothing has moved for `idle_sec`. A client that has
    stopped sending still gets its answer.
    """

    def __init__(
        self,
        client: tuple[Source, ByteWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        idle_sec: float,
    ) -> None:
        self._source, self._writer = client
        self._up_source, self._up_writer = Source(server[0]), server[1]
        self._idle_sec = idle_sec
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._answered = False

    async def tunnel(self) -> None:
        """Pass on bytes as they are."""
        self._writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self._answered = True
        await self._run(Body().copy(self._up_source, self._send), self._send_stream())

    async def exchange(self, method: str, request: bytes, body: Body) -> None:
        """Pass on one request and its answer."""
        self._up_writer.write(request)
        try:
            await self._run(self._receive_answer(method), self._send_body(body))
        except _Refusal:
            if not self._answered:
                raise
            return  # too late for another answer; closing early says that something went wrong
        except (BadMessage, OSError, EOFError) as error:
            if not self._answered:
                why = str(error) if isinstance(error, BadMessage) else "it closed the connection"
                raise _Refusal(502, f"the server gave no proper answer: {why}") from None
        if not self._answered:
            raise _Refusal(504, "the server did not answer in time")

    async def _send(self, data: bytes) -> None:
        self._last = self._loop.time()
        self._writer.write(data)
        await self._writer.drain()

    async def _send_up(self, data: bytes) -> None:
        self._last = self._loop.time()
        self._up_writer.write(data)
        await self._up_writer.drain()

    async def _send_stream(self) -> None:
        await Body().copy(self._source, self._send_up)
        if self._up_writer.can_write_eof():
            self._up_writer.write_eof()

    async def _send_body(self, body: Body) -> None:
        await self._up_writer.drain()
        try:
            await body.copy(self._source, self._send_up)
        except BadMessage as bad:
            raise _Refusal(400, str(bad)) from None

    async def _receive_answer(self, method: str) -> None:
        while True:
            head = await read_head(self._up_source, response=True)
            body = Body.of_response(head, method)
            self._answered = True
            await self._send(head.forwarded(" ".join(head.start)))
            if head.status >= 200:
                break
        await body.copy(self._up_source, self._send)

    async def _run(
        self, inward: Coroutine[Any, Any, None], outward: Coroutine[Any, Any, None]
    ) -> None:
        main, other = asyncio.create_task(inward), asyncio.create_task(outward)
        try:
            waiting = {main, other}
            while not main.done():
                left = self._last + self._idle_sec - self._loop.time()
                if left <= 0:
                    return
                done, waiting = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                error = other.exception() if other in done else None
                if error is not None and not isinstance(error, OSError):
                    raise error  # the request itself is bad; a broken pipe may still be answered
            main.result()
        finally:
            main.cancel()
            other.cancel()
            await asyncio.wait((main, other))
            for task in (main, other):
                if not task.cancelled():
                    task.exception()  # seen: raised above, or of a peer that is gone


async def _connect(
    addresses: list[str], port: int, shown: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the first of the checked addresses that answers."""
    try:
        async with asyncio.timeout(_CONNECT_SEC):
            for address in addresses:
                try:
                    return await asyncio.open_connection(address, port, limit=_CHUNK)
                except OSError:
                    continue  # the next address may answer; if none does, that is said below
    except TimeoutError:
        raise _Refusal(504, f"{shown} did not accept a connection in time") from None
    raise _Refusal(502, f"{shown} refuses connections")


async def _answer(writer: ByteWriter, status: int, line: str) -> None:
    text = f"ramify: {line}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n"
    )
    try:
        writer.write(head.encode() + text)
        await writer.drain()
    except OSError:
        pass  # the client is gone; the refusal has nobody to reach
