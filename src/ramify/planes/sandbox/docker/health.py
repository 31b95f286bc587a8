"""Whether the service in a container is well, and what it said last where it is not.

Healthchecks are run by us through the daemon, not by Docker: from the start and often, so that a
service counts as healthy when it is, and not an interval later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import quote

from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.sandbox import Healthcheck
from ramify.planes.sandbox.capture import tail_text
from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json

_INTERVAL_SEC, _TIMEOUT_SEC, _RETRIES = 30.0, 30.0, 3
_FIRST_PAUSE_SEC, _MOST_PAUSE_SEC = 0.1, 1.0
_COMPLETION_SEC = 600.0
_TAIL_BYTES, _TAIL_LINES = 64 * 1024, 20
_HEAD = 8


@dataclass(frozen=True, slots=True)
class Watched:
    """A service in its container."""

    client: EngineClient
    service: str
    container: str
    tty: bool = False

    async def healthy(self, check: Healthcheck) -> None:
        """Wait until the healthcheck succeeds.

        As long as Docker would: the start period, then `retries` intervals. Raises:
        EnvironmentFailed, with the end of the service's log.
        """
        interval = check.interval_sec or _INTERVAL_SEC
        limit = check.start_period_sec + interval * (check.retries or _RETRIES)
        limit += min(check.timeout_sec or _TIMEOUT_SEC, interval)  # the last one may still run
        started, pause, said = time.monotonic(), _FIRST_PAUSE_SEC, ""
        while True:
            passed, said = await self._probe(check)
            if passed:
                return
            state = await self._state()
            if state["Status"] in ("exited", "dead"):
                await self._fail(f"ended with exit code {state['ExitCode']}, never healthy")
            if time.monotonic() - started + pause > limit:
                await self._fail(f"was not healthy within {limit:.0f} s ({said})")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, interval, _MOST_PAUSE_SEC)

    async def completed(self) -> None:
        """Wait until the service ended with exit code 0. Raises: EnvironmentFailed."""
        started, pause = time.monotonic(), _FIRST_PAUSE_SEC
        while True:
            state = await self._state()
            if state["Status"] in ("exited", "dead"):
                if state["ExitCode"]:
                    await self._fail(f"ended with exit code {state['ExitCode']}")
                return
            if time.monotonic() - started > _COMPLETION_SEC:
                await self._fail(f"did not complete within {_COMPLETION_SEC:.0f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _MOST_PAUSE_SEC)

    async def unbroken(self) -> None:
        """Raise EnvironmentFailed if the service ended by an error and is not restarted."""
        state = await self._state()
        if state["Status"] in ("exited", "dead") and state["ExitCode"]:
            await self._fail(f"ended with exit code {state['ExitCode']}")

    async def tail(self) -> str:
        """The last lines that the service wrote."""
        path = f"/containers/{quote(self.container)}/logs?stdout=1&stderr=1&tail={_TAIL_LINES}"
        data = b""
        stream: AsyncGenerator[bytes] = self.client.fetch(path, "show a log", timeout_sec=20.0)
        async for chunk in stream:
            data = (data + chunk)[-_TAIL_BYTES * 4 :]
        return tail_text(data if self.tty else _unframed(data), lines=_TAIL_LINES)

    async def _probe(self, check: Healthcheck) -> tuple[bool, str]:
        """Run the healthcheck once; whether it succeeded, and how it did not."""
        kind, *words = check.test
        command = ["/bin/sh", "-c", words[0]] if kind == "CMD-SHELL" else words
        where = f"/containers/{quote(self.container)}/exec"
        deadline = time.monotonic() + (check.timeout_sec or _TIMEOUT_SEC)
        try:
            made: Json = await self.client.call("POST", where, "probe", body={"Cmd": command})
            run = f"/exec/{made['Id']}"
            await self.client.call("POST", f"{run}/start", "probe", body={"Detach": True})
            pause = 0.02
            while True:
                state: Json = await self.client.call("GET", f"{run}/json", "show a probe")
                if not state["Running"] and state["ExitCode"] is not None:
                    return state["ExitCode"] == 0, f"the last check exited {state['ExitCode']}"
                if time.monotonic() > deadline:
                    return False, "the last check did not end in time"
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.2)
        except ApiError as error:
            return False, f"the last check could not be run: {error.reason}"

    async def _state(self) -> Json:
        found: Json = await self.client.call(
            "GET", f"/containers/{quote(self.container)}/json", "show a container"
        )
        state: Json = found["State"]
        return state

    async def _fail(self, what: str) -> None:
        said = await self.tail()
        raise EnvironmentFailed(
            f"the service {self.service!r} {what}; "
            + (f"the end of its log:\n{said}" if said else "it wrote no log")
        )


def _unframed(data: bytes) -> bytes:
    """The text in the daemon's frames of 8-byte heads; a first, cut one is left out."""
    text, index = b"", 0
    while index + _HEAD <= len(data):
        head = data[index : index + _HEAD]
        if head[0] > 2 or head[1:4] != b"\0\0\0":
            index += 1  # within a frame whose head was cut off
            continue
        size = int.from_bytes(head[4:], "big")
        text += data[index + _HEAD : index + _HEAD + size]
        index += _HEAD + size
    return text
