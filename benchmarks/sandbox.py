"""How fast sandboxes are made, run a command and go: ours against the Docker engine's API.

    python benchmarks/sandbox.py [--rounds 20] [--image debian:bookworm] [--json]

All variants run in the same process and are interleaved round by round, so that what else the
machine does hits them alike: read the ratios. Docker's part is left out where there is no engine
or no such image.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

from ramify.contracts.sandbox import Sandbox, SandboxProvider, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

EXECS = 10
SETTLE_SEC = 0.5  # so that what one variant still does in the background is not the next one's cost
SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")


class Engine:
    """The Docker engine's API, used plainly: one HTTP call per step."""

    def __init__(self, socket: str, image: str) -> None:
        self._session = aiohttp.ClientSession(
            base_url="http://docker", connector=aiohttp.UnixConnector(socket)
        )
        self._image = image

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(method, path, json=body) as response:
            data = await response.read()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {data.decode(errors='replace')}")
            kind = response.headers.get("Content-Type", "")
            return json.loads(data) if data and "json" in kind else data

    async def create(self) -> str:
        spec = {
            "Image": self._image,
            "Cmd": ["sleep", "600"],
            "HostConfig": {"NetworkMode": "none", "Init": True},
        }
        made = await self.call("POST", "/containers/create", spec)
        await self.call("POST", f"/containers/{made['Id']}/start")
        return made["Id"]

    async def exec(self, container: str) -> None:
        spec = {"Cmd": ["true"], "AttachStdout": True, "AttachStderr": True}
        made = await self.call("POST", f"/containers/{container}/exec", spec)
        await self.call("POST", f"/exec/{made['Id']}/start", {"Detach": False})
        ended = await self.call("GET", f"/exec/{made['Id']}/json")
        assert ended["ExitCode"] == 0, ended

    async def remove(self, container: str) -> None:
        await self.call("DELETE", f"/containers/{container}?force=1")

    async def aclose(self) -> None:
        await self._session.close()


class Times:
    """Milliseconds per variant and step."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._begin = 0.0

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self, variant: str, step: str) -> None:
        self.all[variant][step].append((time.perf_counter() - self._begin) * 1000)

    def median(self, variant: str, step: str) -> float:
        return statistics.median(self.all[variant][step])


async def provider_round(
    times: Times, variant: str, provider: SandboxProvider, spec: SandboxSpec
) -> None:
    times.start()
    sandbox: Sandbox = await provider.create(spec)
    times.stop(variant, "create")
    for _ in range(EXECS):
        times.start()
        result = await sandbox.exec(["true"])
        times.stop(variant, "exec")
        assert result.ok, result
    times.start()
    await sandbox.teardown()
    times.stop(variant, "teardown")


async def engine_round(times: Times, engine: Engine) -> None:
    times.start()
    container = await engine.create()
    times.stop("docker API", "create")
    for _ in range(EXECS):
        times.start()
        await engine.exec(container)
        times.stop("docker API", "exec")
    times.start()
    await engine.remove(container)
    times.stop("docker API", "teardown")


async def find_engine(image: str) -> Engine | None:
    for socket in SOCKETS:
        if os.path.exists(socket):  # noqa: ASYNC240  (once, before anything is measured)
            engine = Engine(socket, image)
            try:
                await engine.call("GET", f"/images/{image}/json")
                return engine
            except (RuntimeError, aiohttp.ClientError) as error:
                print(f"without Docker: {error}", file=sys.stderr)
                await engine.aclose()
                return None
    print("without Docker: no engine", file=sys.stderr)
    return None


async def measure(rounds: int, image: str) -> Times:
    times = Times()
    engine = await find_engine(image)
    with tempfile.TemporaryDirectory() as home:
        local = LocalProvider(Path(home))
        docker = DockerProvider() if engine else None
        try:
            for number in range(rounds + 1):
                if number == 1:
                    times.all.clear()  # the first round warms everything up
                await asyncio.sleep(SETTLE_SEC)
                await provider_round(times, "local", local, SandboxSpec(host_root=True))
                if engine is not None and docker is not None:
                    await asyncio.sleep(SETTLE_SEC)
                    await engine_round(times, engine)
                    await asyncio.sleep(SETTLE_SEC)
                    await provider_round(times, "docker provider", docker, SandboxSpec(image=image))
        finally:
            await local.aclose()
            if docker is not None:
                await docker.aclose()
            if engine is not None:
                await engine.aclose()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--image", default="debian:bookworm")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    times = asyncio.run(measure(arguments.rounds, arguments.image))
    medians = {
        variant: {step: times.median(variant, step) for step in steps}
        for variant, steps in times.all.items()
    }
    if arguments.json:
        print(json.dumps({"medians_ms": medians, "load": os.getloadavg()}))
        return
    print(f"medians in ms of {arguments.rounds} rounds; load {os.getloadavg()[0]:.1f}")
    base = medians.get("docker API")
    for variant, steps in medians.items():
        cells = [
            f"{step} {value:8.2f}" + (f" ({base[step] / value:5.1f}x)" if base else "")
            for step, value in steps.items()
        ]
        print(f"{variant:16} {'   '.join(cells)}")


if __name__ == "__main__":
    main()
