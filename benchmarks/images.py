"""What a Dockerfile task's sandbox costs: on docker, and on local from the imported image.

    python benchmarks/images.py [--rounds 20] [--image debian:bookworm] [--json]

The image is built once, imported once, and then started on both providers in turn, in the same
process, so that what else the machine does hits them alike. `start` ends when the first command
has ended. The exit code is 1 unless local starts in a fifth of docker's time.
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

from ramify.contracts.sandbox import BuildSpec, SandboxImage, SandboxProvider, SandboxSpec
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.docker.client import EngineClient
from ramify.planes.sandbox.docker.images import remove_image
from ramify.planes.sandbox.local import LocalProvider

DOCKERFILE = """FROM {image}
ENV TASK=yes
WORKDIR /app
RUN seq 100000 > /app/numbers && useradd worker && chown worker /app/numbers
"""
WANTED = 5.0
Times = dict[str, list[float]]


async def prepare(provider: SandboxProvider, spec: SandboxSpec, times: Times) -> SandboxImage:
    begin = time.perf_counter()
    image = await provider.prepare(spec)
    times[f"{provider.name} prepare, first"].append(time.perf_counter() - begin)
    begin = time.perf_counter()
    assert await provider.prepare(spec) == image
    times[f"{provider.name} prepare, again"].append(time.perf_counter() - begin)
    return image


async def start(
    provider: SandboxProvider, spec: SandboxSpec, image: SandboxImage, times: Times
) -> None:
    begin = time.perf_counter()
    sandbox = await provider.create(spec, image)
    result = await sandbox.exec("tail -n 1 numbers; echo $TASK")
    times[f"{provider.name} start"].append(time.perf_counter() - begin)
    assert result.stdout == b"100000\nyes\n", result
    begin = time.perf_counter()
    await sandbox.teardown()
    times[f"{provider.name} teardown"].append(time.perf_counter() - begin)


async def measure(rounds: int, base: str) -> Times:
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        task = Path(place, "task")
        os.mkdir(task)
        (task / "Dockerfile").write_text(DOCKERFILE.format(image=base))
        spec = SandboxSpec(build=BuildSpec(str(task)))
        docker, local = DockerProvider(), LocalProvider(Path(place, "home"))
        client = EngineClient()
        images: list[SandboxImage] = []
        try:
            images.extend([await prepare(provider, spec, times) for provider in (docker, local)])
            for number in range(rounds + 1):
                for provider, image in zip((docker, local), images, strict=True):
                    await start(provider, spec, image, times)
                if number == 0:  # the first round warms everything up
                    for name in [name for name in times if "prepare" not in name]:
                        del times[name]
        finally:
            await local.aclose()
            await docker.aclose()
            if images:
                await remove_image(client, images[0].id)
            await client.aclose()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--image", default="debian:bookworm")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    times = asyncio.run(measure(arguments.rounds, arguments.image))
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    ratio = medians["docker start"] / medians["local start"]
    if arguments.json:
        print(json.dumps({"medians_ms": medians, "ratio": ratio, "load": os.getloadavg()}))
    else:
        print(f"medians in ms of {arguments.rounds} rounds; load {os.getloadavg()[0]:.1f}")
        for name, value in medians.items():
            print(f"{name:24}{value:10.2f}")
        print(f"local starts in 1/{ratio:.1f} of docker's time (wanted: 1/{WANTED:.0f})")
    sys.exit(0 if ratio >= WANTED else 1)


if __name__ == "__main__":
    main()
