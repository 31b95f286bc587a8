"""What a fork costs: layers of ours against `docker commit` and start, in the same run.

    python benchmarks/branch.py [--rounds 3] [--image debian:bookworm] [--quick] [--json]

A state of random bytes is written in a sandbox and flushed to the disk (so that what is measured
is not the writing), then frozen, and N children are started on it at once. The Docker engine does
the same over its API: commit, then create and start. Rounds of both alternate, so that what else
the machine does hits them alike: read the ratios. Docker's part is left out where there is no
engine or no such image, the live fork where this machine cannot capture processes.
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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ramify.contracts.errors import RamifyError
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Sandbox,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
)
from ramify.planes.sandbox.local import LocalProvider
from sandbox import Engine, find_engine

SETTLE_SEC = 0.5  # so that what one variant still does in the background is not the next one's cost
CHILDREN = (1, 1, 1, 4, 4, 16, 64)
DOCKER_CHILDREN = (1, 1, 1, 4, 16)
LIVE_CHILDREN = (1, 1, 1, 4, 4, 16)
MANY = 100
DEPTH = 50
EXECS = 100
WORK = "for i in 1 2 3 4 5 6 7 8; do ls /usr/bin /usr/lib /etc; done | wc -l"
AGENT = (
    "import sys, secrets; nonce = secrets.token_hex(8); ballast = bytearray(8 << 20)\n"
    "for line in sys.stdin: print(nonce, line.strip(), flush=True)"
)
SHELL_AGENT = "nonce=$$; while read line; do echo $nonce $line; done"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds, two sizes of state in MB, and whether goals are for them."""

    rounds: int
    small: int
    large: int
    goals: bool = True


class Times:
    """Seconds by variant and step."""

    def __init__(self) -> None:
        self.all: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    async def take(self, variant: str, step: str, work: Awaitable[_T]) -> _T:
        """Await it, and note how long that took."""
        begin = time.perf_counter()
        result = await work
        self.all[variant][step].append(time.perf_counter() - begin)
        return result

    def ms(self, variant: str, step: str) -> float | None:
        """The median in milliseconds, if it was measured."""
        found = self.all.get(variant, {}).get(step)
        return statistics.median(found) * 1000 if found else None


async def at_once(count: int, work: Callable[[], Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of `count` calls that run side by side."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(count)]
    return [task.result() for task in tasks]


async def end_all(children: list[Sandbox]) -> None:
    async with asyncio.TaskGroup() as group:
        for child in children:
            group.create_task(child.teardown())


def writing(megabytes: int) -> str:
    """A script that writes a state of five files."""
    part = megabytes * 1_000_000 // 5
    return (
        f"mkdir -p /srv/state && cd /srv/state && "
        f"for i in 1 2 3 4 5; do head -c {part} /dev/urandom > $i; done"
    )


async def settle() -> None:
    """Let the disk have what was written, and what was removed go."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(SETTLE_SEC)


async def freeze(sandbox: Sandbox) -> SandboxImage:
    assert isinstance(sandbox, Freezable)
    return await sandbox.freeze()


async def succeed(sandbox: Sandbox, script: str) -> bytes:
    result = await sandbox.exec(script, timeout_sec=300)
    assert result.ok, result
    return result.stdout


async def local_fork(
    times: Times, local: SandboxProvider, spec: SandboxSpec, size: int, counts: Sequence[int]
) -> None:
    """Freeze a state of `size` MB, and start children on it; every child sees the state."""
    parent = await local.create(spec)
    await succeed(parent, writing(size))
    await settle()
    variant = f"local {size}"
    image = await times.take(variant, "freeze", freeze(parent))
    for count in counts:
        create = at_once(count, lambda: local.create(spec, image))
        children = await times.take(variant, f"start {count}", create)
        for child in (children[0], children[-1]):
            assert (await succeed(child, "ls /srv/state")).split() == [b"1", b"2", b"3", b"4", b"5"]
        await end_all(children)
        await settle()
    await local.discard(image)


class DockerForks:
    """The same with the engine's API alone; a context that removes what it made."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for path in reversed(self._made):  # containers before the image that they run on
            await self._engine.call("DELETE", path)
        self._made.clear()

    async def run(self, times: Times, size: int, counts: Sequence[int]) -> None:
        """Commit a container with a state of `size` MB, and start containers on it."""
        engine, variant = self._engine, f"docker {size}"
        parent = await engine.create()
        self._made.append(f"/containers/{parent}?force=1")
        await self._exec(parent, writing(size))
        await settle()
        commit = engine.call("POST", f"/commit?container={parent}", {})
        image = (await times.take(variant, "freeze", commit))["Id"]
        self._made.append(f"/images/{image}?force=1")
        for count in counts:
            await settle()
            start = at_once(count, lambda: self._start(image))
            children = await times.take(variant, f"start {count}", start)
            async with asyncio.TaskGroup() as group:
                for child in children:
                    group.create_task(self._remove(child))

    async def _start(self, image: str) -> str:
        host = {"NetworkMode": "none", "Init": True}
        spec = {"Image": image, "Cmd": ["sleep", "600"], "HostConfig": host}
        made = await self._engine.call("POST", "/containers/create", spec)
        self._made.append(f"/containers/{made['Id']}?force=1")
        await self._engine.call("POST", f"/containers/{made['Id']}/start")
        return made["Id"]

    async def _remove(self, container: str) -> None:
        await self._engine.remove(container)
        self._made.remove(f"/containers/{container}?force=1")

    async def _exec(self, container: str, script: str) -> None:
        spec = {"Cmd": ["sh", "-c", script], "AttachStdout": True, "AttachStderr": True}
        made = await self._engine.call("POST", f"/containers/{container}/exec", spec)
        await self._engine.call("POST", f"/exec/{made['Id']}/start", {"Detach": False})
        ended = await self._engine.call("GET", f"/exec/{made['Id']}/json")
        assert ended["ExitCode"] == 0, ended


async def many_children(times: Times, local: SandboxProvider, spec: SandboxSpec) -> None:
    """A hundred children of one state, all alive at the end."""
    parent = await local.create(spec)
    await succeed(parent, "echo state > /srv/state")
    image = await freeze(parent)
    for _ in range(3):
        create = at_once(MANY, lambda: local.create(spec, image))
        children = await times.take("many", "start", create)
        assert await succeed(children[-1], "cat /srv/state") == b"state\n"
        await end_all(children)
        await settle()
    await local.discard(image)


async def depth(times: Times, local: SandboxProvider, spec: SandboxSpec) -> None:
    """Commands in a sandbox on one frozen layer, and in one on fifty, by turns."""
    images: list[SandboxImage] = []
    for number in range(DEPTH):
        sandbox = await local.create(spec, images[-1] if images else None)
        await succeed(sandbox, f"mkdir -p /srv/state; echo {number} > /srv/state/{number}")
        images.append(await freeze(sandbox))
    flat, deep = await local.create(spec, images[0]), await local.create(spec, images[-1])
    assert len((await succeed(deep, "ls /srv/state")).split()) == DEPTH
    for box in (flat, deep):
        await succeed(box, WORK)
    await settle()
    for _ in range(EXECS):
        for variant, box in (("depth 1", flat), (f"depth {DEPTH}", deep)):
            assert (await times.take(variant, "true", box.exec(["true"]))).ok
            assert (await times.take(variant, "walk", box.exec(WORK))).ok
    for box in (flat, deep):
        await box.teardown()
    for image in reversed(images):
        await local.discard(image)
    await settle()


async def ask(process: Process, text: str) -> bytes:
    """One line to an agent, and its answer."""
    await process.write(text.encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        piece = await process.read()
        assert piece, "the agent ended"
        answer += piece
    return answer.split()[0]


async def live(
    times: Times, local: SandboxProvider, spec: SandboxSpec, counts: Sequence[int]
) -> str:
    """Fork an agent process with its pipes; "" or why that is not available here."""
    spec = SandboxSpec(image=spec.image, host_root=spec.host_root, live=True)
    try:
        parent = await local.create(spec)
    except RamifyError as error:
        return str(error)
    try:
        python = (await parent.exec("command -v python3")).ok
        command = ["python3", "-c", AGENT] if python else ["sh", "-c", SHELL_AGENT]
        agent = await parent.spawn(command)
        nonce = await ask(agent, "hello")
        await asyncio.sleep(SETTLE_SEC)
        if not isinstance(parent, Snapshottable):
            return "its sandboxes cannot be captured"
        image = await times.take("live", "checkpoint", parent.checkpoint())
    except RamifyError as error:
        return str(error)
    finally:
        await parent.teardown()

    async def child() -> Sandbox:
        sandbox = await local.create(spec, image)
        assert isinstance(sandbox, Snapshottable)
        assert await ask(sandbox.attach(agent.pid), "again") == nonce
        return sandbox

    for count in counts:
        children = await times.take("live", f"start {count}", at_once(count, child))
        await end_all(children)
        await asyncio.sleep(SETTLE_SEC)
    await local.discard(image)
    return ""


async def measure(plan: Plan, image: str) -> tuple[Times, str]:
    times, unavailable = Times(), ""
    engine = await find_engine(image)
    spec = SandboxSpec(image=image) if engine else SandboxSpec(host_root=True)
    with tempfile.TemporaryDirectory() as home:
        local = LocalProvider(Path(home))
        try:
            warm = await local.create(spec)  # fetches the image, starts what all of them share
            await local.discard(await freeze(warm))
            for number in range(plan.rounds):
                await local_fork(times, local, spec, plan.small, CHILDREN)
                if engine is not None:
                    async with DockerForks(engine) as forks:
                        await forks.run(times, plan.small, DOCKER_CHILDREN)
                    await settle()
                await local_fork(times, local, spec, plan.large, CHILDREN)
                if engine is not None and number == 0:
                    async with DockerForks(engine) as forks:
                        await forks.run(times, plan.large, (1,))
                    await settle()
                await many_children(times, local, spec)
                unavailable = await live(times, local, spec, LIVE_CHILDREN)
            await depth(times, local, spec)
        finally:
            await local.aclose()
            if engine is not None:
                await engine.aclose()
    return times, unavailable


def fork_table(times: Times, size: int) -> None:
    """Freeze and start of N children, and how many times faster that is than Docker's."""
    columns = sorted(set(CHILDREN))
    print(f"\nfork + start of a state of {size} MB, ms")
    print(f"{'':10} {'freeze':>10}" + "".join(f"{f'N={n}':>18}" for n in columns))
    for who in ("local", "docker"):
        freezing = times.ms(f"{who} {size}", "freeze")
        if freezing is None:
            continue
        cells: list[str] = []
        for count in columns:
            own, other = forked(times, who, size, count), forked(times, "docker", size, count)
            ratio = f" ({other / own:5.1f}x)" if own and other and who == "local" else ""
            cells.append(f"{own:9.1f}{ratio}" if own else "-")
        print(f"{who:10} {freezing:10.1f}" + "".join(f"{cell:>18}" for cell in cells))


def forked(times: Times, who: str, size: int, count: int) -> float | None:
    """Milliseconds from a running sandbox to `count` running children of it."""
    start = times.ms(f"{who} {size}", f"start {count}")
    freezing = times.ms(f"{who} {size}", "freeze")
    return start + freezing if start is not None and freezing is not None else None


@dataclass(frozen=True)
class Goals:
    """Prints figures, each with whether it is what it should be."""

    told: bool

    def least(self, name: str, value: float | None, bound: float, unit: str = "x") -> None:
        self._line(name, value, unit, f">= {bound:g}", met=value is not None and value >= bound)

    def most(self, name: str, value: float | None, bound: float, unit: str = "x") -> None:
        self._line(name, value, unit, f"<= {bound:g}", met=value is not None and value <= bound)

    def _line(self, name: str, value: float | None, unit: str, goal: str, *, met: bool) -> None:
        if value is not None:
            end = f" (goal {goal}: {'met' if met else 'MISSED'})" if self.told else ""
            print(f"{name:44} {value:9.2f} {unit:3}{end}".rstrip())


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def report(times: Times, plan: Plan, unavailable: str) -> None:
    print(f"medians of {plan.rounds} rounds; load {os.getloadavg()[0]:.1f}")
    for size in (plan.small, plan.large):
        fork_table(times, size)
    print()
    goals = Goals(plan.goals)
    for count, bound in ((1, 40), (16, 10)):
        value = ratio(
            forked(times, "docker", plan.small, count), forked(times, "local", plan.small, count)
        )
        goals.least(f"{plan.small} MB, N={count}, against docker", value, bound)
    value = ratio(
        times.ms(f"local {plan.large}", "freeze"), times.ms(f"local {plan.small}", "freeze")
    )
    goals.most(f"freeze of {plan.large} MB against {plan.small} MB", value, 1.5)
    spent = times.ms("many", "start")
    goals.most(f"{MANY} children", spent and spent / 1000, 2.0, "s")
    for step, what in (("true", "exec true"), ("walk", "walk of directories")):
        value = ratio(times.ms(f"depth {DEPTH}", step), times.ms("depth 1", step))
        goals.most(f"{what} at depth {DEPTH} against 1", value, 1.1)
    if unavailable:
        print(f"live fork: not available: {unavailable}")
        return
    print(f"{'live checkpoint of an agent':44} {times.ms('live', 'checkpoint'):9.2f} ms")
    for count in sorted(set(LIVE_CHILDREN)):
        total = times.ms("live", f"start {count}")
        name = f"live fork with answer, per child, N={count}"
        goals.most(name, total and total / count, 100.0, "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default="debian:bookworm")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the bytes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    plan = Plan(1, 50, 200, goals=False) if arguments.quick else Plan(arguments.rounds, 500, 2000)
    times, unavailable = asyncio.run(measure(plan, arguments.image))
    if arguments.json:
        medians = {
            variant: {step: times.ms(variant, step) for step in steps}
            for variant, steps in times.all.items()
        }
        found = {"medians_ms": medians, "load": os.getloadavg(), "live_unavailable": unavailable}
        json.dump(found, sys.stdout)
        print()
        return
    report(times, plan, unavailable)


if __name__ == "__main__":
    main()
