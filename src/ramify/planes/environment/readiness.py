"""Whether a world answers: over HTTP, over TCP, and to a command inside."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from ramify.contracts.context import Clock
from ramify.contracts.sandbox import Endpoint, Sandbox
from ramify.planes.environment.records import Readiness, ServiceSpec
from ramify.planes.environment.sockets import listeners

_ASK_SEC = 5.0
_ANSWER_BYTES = 256 * 1024
_NONCE_HEADER, _NONCE_QUERY = "X-Ramify-Nonce", "ramify_nonce"


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that has to answer: a path of a port, a port (no path), or a command (no port).

    `what` is how it is called in messages.
    """

    what: str
    port: int = 0
    path: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a probe: when (the clock's monotonic time), and what is wrong ("" if well)."""

    probe: Probe
    at: float
    wrong: str


def probes(readiness: Readiness, services: Sequence[ServiceSpec]) -> list[Probe]:
    """What has to answer in a world with these services.

    All that `readiness` lists; of each service with a port its `health`, or where it declares
    none: what `readiness` lists for that port, else `/health` where `readiness` lists nothing at
    all, else that the port accepts connections.
    """
    found: list[Probe] = []
    for url in readiness.http:
        parts = urlsplit(url)
        path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
        found.append(Probe(url, parts.port or 80, path))
    found += [Probe(f"port {port}", port) for port in readiness.tcp]
    listed = {probe.port for probe in found}
    for service in services:
        if service.port is None:
            continue
        health = service.health or service.health_path
        if health is None and service.port in listed:
            continue
        if health is None:
            health = "tcp" if listed else "/health"
        path = "" if health == "tcp" else health
        found.append(Probe(f"{service.name} (port {service.port}{path})", service.port, path))
    if readiness.command is not None:
        found.append(Probe("the readiness command", command=readiness.command))
    unique = {(probe.port, probe.path, probe.command): probe for probe in reversed(found)}
    return list(reversed(unique.values()))


@dataclass(frozen=True, slots=True)
class Gate:
    """Asks whether a world answers.

    Attributes:
        sandbox: where it is.
        endpoint: a host address that reaches a port of it.
        clock: whose time answers are stamped with.
        workdir: where a readiness command runs.
        nonce: whether the services echo a nonce.
    """

    sandbox: Sandbox
    endpoint: Callable[[int], Awaitable[Endpoint]]
    clock: Clock
    workdir: str
    nonce: bool = False

    async def ask(self, wanted: Sequence[Probe]) -> list[Answer]:
        """Ask all of them once, at the same time. Raises SandboxError."""
        timeout = aiohttp.ClientTimeout(total=_ASK_SEC)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            asked = [(each, group.create_task(self._one(session, each))) for each in wanted]
        return [Answer(probe, *task.result()) for probe, task in asked]

    async def _one(self, session: aiohttp.ClientSession, probe: Probe) -> tuple[float, str]:
        if probe.command:
            wrong = await self._run(probe.command)
        elif not probe.path:
            wrong = await self._listens(probe.port)
        else:
            endpoint = await self.endpoint(probe.port)
            try:
                wrong = await self._get(session, endpoint, probe)
            except TimeoutError:
                wrong = f"no answer within {_ASK_SEC:g} s"
            except (aiohttp.ClientError, OSError) as error:
                wrong = f"no answer ({str(error) or type(error).__name__})"
        return self.clock.monotonic(), wrong

    async def _run(self, command: str) -> str:
        result = await self.sandbox.exec(command, cwd=self.workdir, timeout_sec=_ASK_SEC)
        if result.ok:
            return ""
        said = (result.stderr or result.stdout)[-300:].decode(errors="replace").strip()
        return f"exit code {result.exit_code}{': ' + said if said else ''}"

    async def _get(self, session: aiohttp.ClientSession, endpoint: Endpoint, probe: Probe) -> str:
        nonce = secrets.token_hex(16)
        path, headers = probe.path, {"Host": f"localhost:{probe.port}"}
        if self.nonce:
            path += f"{'&' if '?' in path else '?'}{_NONCE_QUERY}={nonce}"
            headers[_NONCE_HEADER] = nonce
        url = f"http://{endpoint.host}:{endpoint.port}{path}"
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                return f"HTTP {response.status}"
            if not self.nonce:
                return ""
            body = await response.content.read(_ANSWER_BYTES)
            echoed = response.headers.get(_NONCE_HEADER) == nonce or nonce.encode() in body
            return "" if echoed else "the answer does not hold the nonce it was asked with"

    async def _listens(self, port: int) -> str:
        """Whether somebody listens; a connection would be accepted by our own end of it already."""
        seen = await listeners(self.sandbox)
        if seen is None:
            return "it cannot be seen from /proc whether somebody listens (no `cat` in the image?)"
        return "" if port in seen.holders else "nobody listens"
