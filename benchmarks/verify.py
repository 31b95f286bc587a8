"""What verification costs: a pipeline of five steps, and tests that are run hardened.

    python benchmarks/verify.py [--rounds 15] [--image debian:bookworm] [--json]

A pipeline of trivial steps on `local` is held against those steps alone, on Docker against one
`docker run` that does them. Our hardened run of the tests of examples/tasks/merge-intervals, at the
levels `outputs` and `filesystem`, is held against the same tests in a sandbox that is there
already, and against a script verifier of them. All variants are interleaved round by round: read
the ratios and differences. The first round is no part of them; what it cost, with the preparation
of what is kept, is shown apart. Docker's part is left out where there is no engine or no such
image.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ramify.apps.pipeline.records import PipelineSpec, StepSpec
from ramify.apps.pipeline.run import RunRequest, run_pipeline
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxProvider, SandboxSpec
from ramify.contracts.task import (
    IsolationLevel,
    SolutionSettings,
    Task,
    TaskPackage,
    TestGrading,
    VerifierSettings,
)
from ramify.engine.clock import SystemClock
from ramify.planes.environment.package import provision_package
from ramify.planes.reward.script import ScriptVerifier
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider
from ramify.testing.fakecontext import fake_context
from sandbox import find_engine

SETTLE_SEC = 0.3
STEPS = [f"test -e file-{number}" for number in range(1, 6)]
EXAMPLE = Path(__file__).parents[1] / "examples" / "tasks" / "merge-intervals"
TEST_SH = """\
#!/bin/sh
if python3 -m unittest discover -s /tests -t /tests
then echo 1; else echo 0; fi > /logs/verifier/reward.txt
"""
# The tests call our runner for what the agent wrote; without it they import that.
DIRECT = """\
import importlib.util

class CallFailed(Exception):
    kind = "raised"

    def __init__(self, error):
        super().__init__(str(error))
        self.type = type(error).__name__

def isolated_call(file, function, *arguments):
    spec = importlib.util.spec_from_file_location("answer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return getattr(module, function)(*arguments)
    except Exception as error:
        raise CallFailed(error) from error
"""
LEVELS = (IsolationLevel.OUTPUTS, IsolationLevel.FILESYSTEM)
_T = TypeVar("_T")


@dataclass
class Times:
    """Milliseconds by what was measured."""

    all: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    first: dict[str, float] = field(default_factory=dict[str, float])

    async def take(self, name: str, work: Awaitable[_T]) -> _T:
        """Await it, and note how long that took."""
        await asyncio.sleep(SETTLE_SEC)
        begin = time.perf_counter()
        result = await work
        self.all[name].append((time.perf_counter() - begin) * 1000)
        return result

    def begin(self) -> None:
        """What was taken so far was the first round."""
        self.first = {name: taken[0] for name, taken in self.all.items()}
        self.all.clear()

    def median(self, name: str) -> float | None:
        return statistics.median(self.all[name]) if name in self.all else None


async def succeed(*argv: str, cwd: Path | None = None) -> None:
    """Run a program of this machine."""
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{shlex.join(argv)}: {said.decode(errors='replace')}")


async def make_repository(place: Path) -> Path:
    repo = place / "repo"
    repo.mkdir()
    for number in range(1, 101):
        (repo / f"file-{number}").write_text(f"{number}\n")
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.com")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "files")):
        await succeed(*git, *command, cwd=repo)
    return repo


async def steps_alone(repo: Path) -> None:
    for step in STEPS:
        await succeed("sh", "-e", "-c", step, cwd=repo)


async def docker_run(repo: Path, image: str) -> None:
    script = " && ".join(f"sh -e -c {shlex.quote(step)}" for step in STEPS)
    await succeed(
        *("docker", "run", "--rm", "--network", "none", "-v", f"{repo}:{repo}:ro", "-w", str(repo)),
        *(image, "sh", "-c", script),
    )


async def pipeline(repo: Path, provider: SandboxProvider, image: str | None) -> None:
    steps = tuple(StepSpec(f"step-{n}", step) for n, step in enumerate(STEPS, 1))
    spec = PipelineSpec(steps, image=image)
    request = RunRequest(repo, spec, provider, SystemClock(), repo.parent / "artifacts")
    response = await run_pipeline(request)
    assert response.passed, response


def row(name: str, level: IsolationLevel, kind: str) -> str:
    return f"{name} {level.value} {kind}"


@dataclass(frozen=True)
class Graded:
    """The example task with its tests run by us, or by a script, in one kind of sandbox."""

    name: str
    provider: SandboxProvider
    spec: SandboxSpec
    place: Path

    def package(self, kind: str) -> TaskPackage:
        """The task; `plain` grades with test.sh."""
        root = self.place / kind
        if not root.exists():
            shutil.copytree(EXAMPLE / "tests", root / "tests")
            if kind == "plain":
                (root / "tests" / "ramify_tests.py").write_text(DIRECT)
                (root / "tests" / "test.sh").write_text(TEST_SH)
        grading = TestGrading(runner="unittest") if kind == "hardened" else None
        settings = VerifierSettings(timeout_sec=60.0, grading=grading)
        outputs = ("intervals.py",)
        return TaskPackage(
            str(root), kind, self.spec, settings, SolutionSettings(), outputs=outputs
        )

    async def measure(self, times: Times) -> None:
        """One rollout of each kind at each level, and the tests by themselves."""
        image = await self.provider.prepare(self.spec)
        for level in LEVELS:
            for kind in ("plain", "hardened"):
                sandbox = await self.provider.create(self.spec, image)
                try:
                    await self._verify(times, sandbox, image, level, kind)
                finally:
                    await sandbox.teardown()

    async def _verify(
        self, times: Times, sandbox: Sandbox, image: SandboxImage, level: IsolationLevel, kind: str
    ) -> None:
        ctx = fake_context(
            Task("bench:intervals", input="", package=self.package(kind)),
            artifacts=self.place / "artifacts",
            sandbox=sandbox,
            provider=self.provider,
            image=image,
        )
        await provision_package(sandbox, ctx)
        solve = (EXAMPLE / "solution" / "solve.sh").read_text()
        solved = await sandbox.exec(solve, user="root", cwd=ctx.workdir)
        assert solved.ok, solved
        if (level, kind) == (LEVELS[0], "plain"):
            await self._alone(times, sandbox, ctx.workdir)
        verifier = ScriptVerifier(level, provision_package)
        work = verifier.score(None, ctx)  # type: ignore[arg-type]  (it is not looked at)
        result = await times.take(row(self.name, level, kind), work)
        assert result.reward == 1.0, result

    async def _alone(self, times: Times, sandbox: Sandbox, workdir: str) -> None:
        await sandbox.upload(self.place / "plain" / "tests", "/tests", clear=True)
        command = "python3 -m unittest discover -s /tests -t /tests"
        done = await times.take(
            f"{self.name} tests alone", sandbox.exec(command, user="root", cwd=workdir)
        )
        assert done.ok, done


async def measure(rounds: int, image: str) -> Times:
    times = Times()
    engine = await find_engine(image)
    if engine is not None:
        await engine.aclose()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        os.environ["RAMIFY_HOME"] = place
        repo = await make_repository(home)
        local = LocalProvider(home / "local")
        docker = DockerProvider(home / "docker") if engine is not None else None
        kinds = [Graded("local", local, SandboxSpec(host_root=True, workdir="/app"), home / "a")]
        if docker is not None:
            kinds.append(
                Graded("docker", docker, SandboxSpec(image=image, workdir="/app"), home / "b")
            )
        try:
            for number in range(rounds + 1):
                if number == 1:
                    times.begin()
                await times.take("steps alone", steps_alone(repo))
                await times.take("local pipeline", pipeline(repo, local, None))
                if docker is not None:
                    await times.take("docker run", docker_run(repo, image))
                    await times.take("docker pipeline", pipeline(repo, docker, image))
                for kind in kinds:
                    await kind.measure(times)
        finally:
            await local.aclose()
            if docker is not None:
                await docker.aclose()
    return times


def goal(name: str, value: float | None, most: float, unit: str) -> None:
    """Print a figure, and whether it is what it should be."""
    if value is not None:
        met = "met" if value <= most else "MISSED"
        print(f"{name:52} {value:8.2f} {unit:2} (goal <= {most:g}: {met})")


def over(times: Times, name: str, floor: str) -> float | None:
    one, other = times.median(name), times.median(floor)
    return one - other if one is not None and other is not None else None


def ratio(times: Times, name: str, floor: str) -> float | None:
    one, other = times.median(name), times.median(floor)
    return one / other if one is not None and other is not None else None


def report(times: Times, rounds: int) -> None:
    print(f"medians in ms of {rounds} rounds; load {os.getloadavg()[0]:.1f}")
    for name in times.all:
        print(f"{name:30} {times.median(name):9.1f}")
    print()
    goal(
        "pipeline on local, over its steps", over(times, "local pipeline", "steps alone"), 150, "ms"
    )
    against = ratio(times, "docker pipeline", "docker run")
    goal("pipeline on docker, against one docker run", against, 1.5, "x")
    for name, most in (("local", 300), ("docker", 1500)):
        for level in LEVELS:
            hardened, where = row(name, level, "hardened"), f"{name} ({level.value})"
            extra = over(times, hardened, f"{name} tests alone")
            goal(f"hardened tests on {where}, over the tests", extra, most, "ms")
            plain = over(times, hardened, row(name, level, "plain"))
            if plain is not None:
                print(f"{f'hardened tests on {where}, over a script':52} {plain:8.2f} ms")
                print(
                    f"{f'hardened tests on {where}, first time':52} {times.first[hardened]:8.2f} ms"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--image", default="debian:bookworm")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    times = asyncio.run(measure(arguments.rounds, arguments.image))
    if arguments.json:
        medians = {name: times.median(name) for name in times.all}
        json.dump(
            {"medians_ms": medians, "first_ms": times.first, "load": os.getloadavg()}, sys.stdout
        )
        print()
        return
    report(times, arguments.rounds)


if __name__ == "__main__":
    main()
