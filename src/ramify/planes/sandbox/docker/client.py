"""A small client of the Docker Engine API over its socket: no SDK, no command line.

The daemon is found as the docker command finds it: `DOCKER_HOST` (`unix://` or `tcp://`), else
`/var/run/docker.sock`, or the socket of a rootless daemon or desktop. Every call has a deadline
and raises `ApiError` when the daemon refuses, or `SandboxStartError` when there is no daemon.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp

from ramify.contracts.errors import ConfigError, SandboxError, SandboxStartError

Json = dict[str, Any]
Query = Mapping[str, str]

_SYSTEM_SOCKET = "/var/run/docker.sock"
_NEWEST_API = (1, 47)
_OLDEST_API = (1, 40)
_CALL_SEC = 60.0
_READ_AHEAD = 1024 * 1024


class ApiError(SandboxError):
    """The daemon answered with an error; `status` is the HTTP status, `reason` its message."""

    def __init__(self, what: str, status: int, reason: str) -> None:
        super().__init__(what, status, reason)
        self.what, self.status, self.reason = what, status, reason

    def __str__(self) -> str:
        return f"Docker refused to {self.what}: {self.reason} (HTTP {self.status})"


@dataclass(frozen=True, slots=True)
class Daemon:
    """What a daemon says about itself."""

    api: str
    version: str
    os: str
    arch: str
    info: Json


@dataclass(frozen=True, slots=True)
class _Address:
    """Where the daemon listens: a socket path, or a host and port."""

    text: str
    path: str | None = None
    host: str = ""
    port: int = 0


class EngineClient:
    """Calls to one Docker daemon. `host` is a `unix://` or `tcp://` address (None: as above)."""

    def __init__(self, host: str | None = None) -> None:
        self._host = host
        self._session: aiohttp.ClientSession | None = None
        self._daemon: Daemon | None = None
        self._lock = asyncio.Lock()

    @property
    def address(self) -> str:
        """The daemon's address, as text for a person."""
        return self._host or os.environ.get("DOCKER_HOST") or _usual_address()

    async def connect(self) -> Daemon:
        """Agree on an API version with the daemon; later calls return what the first one learnt.

        Raises: ConfigError (an address that cannot be used, a daemon that is too old),
        SandboxStartError (no daemon, no permission).
        """
        async with self._lock:
            if self._daemon is None:
                version = await self._json("GET", "/version", "tell its version")
                api = _negotiate(version)
                info = await self._json("GET", f"/v{api}/info", "describe itself")
                self._daemon = Daemon(
                    api=api,
                    version=str(version.get("Version", "?")),
                    os=str(version.get("Os", "linux")),
                    arch=str(version.get("Arch", "?")),
                    info=info,
                )
            return self._daemon

    async def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Query | None = None,
        body: object = None,
        timeout_sec: float = _CALL_SEC,
    ) -> Any:
        """One call with a JSON answer (None where the daemon sends none).

        `what` completes "Docker refused to ...". Raises: ApiError, SandboxStartError.
        """
        daemon = await self.connect()
        return await self._json(
            method, f"/v{daemon.api}{path}", what, query, body, timeout_sec=timeout_sec
        )

    async def send(
        self,
        method: str,
        path: str,
        what: str,
        data: bytes | AsyncIterator[bytes],
        *,
        query: Query | None = None,
        timeout_sec: float = 600.0,
    ) -> AsyncIterator[Json]:
        """Send a tar archive; iterate over the JSON lines that the daemon answers with.

        Raises: ApiError, SandboxStartError.
        """
        daemon = await self.connect()
        url = f"/v{daemon.api}{path}"
        headers = {"Content-Type": "application/x-tar"}
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self._request(method, url, what, query, body, headers, timeout_sec) as response:
            async for message in _json_lines(response):
                yield message

    async def fetch(self, path: str, what: str, *, timeout_sec: float) -> AsyncGenerator[bytes]:
        """Iterate over the bytes of an archive that the daemon sends.

        Raises: ApiError, SandboxError (it hung up half-way, or too late), SandboxStartError.
        """
        daemon = await self.connect()
        url = f"/v{daemon.api}{path}"
        async with self._request("GET", url, what, None, None, {}, timeout_sec) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    async def attach(
        self, container: str, timeout_sec: float = _CALL_SEC
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The hijacked connection to a container's standard streams.

        What it carries inward is the container's standard input; outward come the daemon's
        8-byte-headed frames. Closing it is the end of the container's standard input.
        Raises: ApiError, SandboxStartError.
        """
        daemon = await self.connect()
        query = urlencode({"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1})
        head = (
            f"POST /v{daemon.api}/containers/{quote(container)}/attach?{query} HTTP/1.1\r\n"
            "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        )
        try:
            async with asyncio.timeout(timeout_sec):
                return await self._hijack(head.encode("ascii"))
        except (asyncio.IncompleteReadError, OSError) as error:  # OSError: also TimeoutError
            raise SandboxError(f"cannot attach to the container: {error!r}") from error

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _json(
        self,
        method: str,
        url: str,
        what: str,
        query: Query | None = None,
        body: object = None,
        timeout_sec: float = _CALL_SEC,
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        async with self._request(method, url, what, query, data, headers, timeout_sec) as response:
            raw = await response.read()
        return json.loads(raw) if raw.strip() else None

    def _request(
        self,
        method: str,
        url: str,
        what: str,
        query: Query | None,
        data: bytes | io.BytesIO | AsyncIterator[bytes] | None,
        headers: Mapping[str, str],
        timeout_sec: float,
    ) -> _Request:
        session, base = self._open()
        return _Request(
            session.request(
                method,
                base + url,
                params=dict(query or {}),
                data=data,
                headers=dict(headers),
                timeout=aiohttp.ClientTimeout(total=timeout_sec),
                read_bufsize=_READ_AHEAD,
            ),
            what,
            self.address,
        )

    def _open(self) -> tuple[aiohttp.ClientSession, str]:
        address = _parse(self.address)
        base = "http://docker" if address.path else f"http://{address.host}:{address.port}"
        if self._session is None:
            # The pool is not bounded here: callers bound how much they do at once.
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(address.path, limit=0)
                if address.path
                else aiohttp.TCPConnector(limit=0)
            )
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session, base

    async def _hijack(self, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._open_raw()
        try:
            writer.write(head)
            await _expect_upgrade(reader)
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer

    async def _open_raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = _parse(self.address)
        limit = 1 << 20
        try:
            if address.path:
                return await asyncio.open_unix_connection(address.path, limit=limit)
            return await asyncio.open_connection(address.host, address.port, limit=limit)
        except OSError as error:
            raise _unreachable(self.address, error) from error


class _Request:
    """An HTTP exchange as a context: errors of the daemon and of the way to it become ours."""

    def __init__(self, context: Any, what: str, address: str) -> None:
        self._context, self._what, self._address = context, what, address

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._context.__aenter__()
            if response.status >= 400:
                reason = _reason(await response.read())
                await self._context.__aexit__(None, None, None)
                raise ApiError(self._what, response.status, reason)
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(self._address, error.os_error) from error
        except aiohttp.ClientError as error:
            raise self._broken(error) from error
        except TimeoutError as error:
            raise self._late() from error
        return response

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        await self._context.__aexit__(kind, error, trace)
        if isinstance(error, aiohttp.ClientError):
            raise self._broken(error) from error
        if isinstance(error, TimeoutError):
            raise self._late() from error

    def _broken(self, error: Exception) -> SandboxError:
        return SandboxError(f"the Docker daemon hung up while asked to {self._what}: {error}")

    def _late(self) -> SandboxError:
        return SandboxError(f"the Docker daemon did not {self._what} in time")


def _usual_address() -> str:
    """The socket of the system, else of a rootless daemon or of a desktop, where there is one."""
    places = [_SYSTEM_SOCKET, f"{Path.home()}/.docker/run/docker.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.insert(1, f"{runtime}/docker.sock")
    found = next((place for place in places if Path(place).exists()), _SYSTEM_SOCKET)
    return f"unix://{found}"


def _parse(address: str) -> _Address:
    if os.environ.get("DOCKER_TLS_VERIFY"):
        raise ConfigError(
            "DOCKER_TLS_VERIFY is set, but Docker over TLS is not supported; use a unix socket "
            "(ssh -L can forward one)",
            field="DOCKER_HOST",
        )
    parts = urlsplit(address)
    if parts.scheme == "unix" and parts.path:
        return _Address(address, path=parts.path)
    if parts.scheme == "tcp" and parts.hostname:
        return _Address(address, host=parts.hostname, port=parts.port or 2375)
    raise ConfigError(f"{address!r} is not unix:///path or tcp://host:port", field="DOCKER_HOST")


def _unreachable(address: str, error: OSError) -> SandboxStartError:
    if isinstance(error, PermissionError) or error.errno == 13:
        return SandboxStartError(
            f"no permission to use the Docker socket {address}: add this user to the group "
            "`docker` (usermod -aG docker $USER, then log in again), or run as root"
        )
    return SandboxStartError(
        f"no Docker daemon at {address} ({error.strerror or error}): start Docker "
        "(dev/docker-engine installs and starts one), set DOCKER_HOST, or use --sandbox local"
    )


def _negotiate(version: Json) -> str:
    def number(key: str, default: str) -> tuple[int, int]:
        major, _, minor = str(version.get(key) or default).partition(".")
        return int(major), int(minor or 0)

    newest, oldest = number("ApiVersion", "1.24"), number("MinAPIVersion", "1.12")
    chosen = min(newest, _NEWEST_API)
    if chosen < _OLDEST_API or oldest > _NEWEST_API:
        raise ConfigError(
            f"the Docker daemon speaks API {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}; "
            f"{_OLDEST_API[0]}.{_OLDEST_API[1]} to {_NEWEST_API[0]}.{_NEWEST_API[1]} is needed: "
            "use Docker 19.03 or newer"
        )
    return f"{chosen[0]}.{chosen[1]}"


def _reason(raw: bytes) -> str:
    try:
        message = json.loads(raw).get("message", "")
    except (ValueError, AttributeError):
        message = raw[:2000].decode("utf-8", "replace")
    return str(message).strip() or "no reason given"


async def _json_lines(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    buffer = b""
    async for chunk in response.content.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    if buffer.strip():
        yield json.loads(buffer)


async def _expect_upgrade(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status in (101, 200):
        return
    body = await reader.read(4096)
    raise ApiError("attach to the container", status, _reason(body))
