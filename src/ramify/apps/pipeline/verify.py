"""Verification as a person asks for it: which pipeline, where, one at a time, and old runs go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify import compose
from ramify.apps.pipeline.config import parse_pipeline
from ramify.apps.pipeline.layout import artifact_root, new_run_id
from ramify.apps.pipeline.lock import repository_lock
from ramify.apps.pipeline.pins import Pin, find_pin
from ramify.apps.pipeline.place import DEFAULT_IMAGE, HOST
from ramify.apps.pipeline.project import find_project, placed
from ramify.apps.pipeline.records import CONFIG_FILE, PipelineSpec, Response, RunEvent
from ramify.apps.pipeline.report import stamp
from ramify.apps.pipeline.retention import sweep
from ramify.apps.pipeline.run import RunRequest, run_pipeline
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, InfraError, UnsupportedError
from ramify.contracts.sandbox import SandboxProvider
from ramify.engine.clock import SystemClock

_PREFERRED = ("docker", "local")


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """What is asked for.

    Attributes:
        repo: the repository, or a directory of it that has an agent.yaml of its own.
        sandbox: provider; None: docker where it works, else local.
        image: in place of the pipeline's; `host` for the host's own root, read-only.
        base: commit that the pipeline and protected paths come from; None: HEAD.
        wait: wait while somebody else verifies the repository, instead of refusing.
        host: variables of the host.
        clock: time.
    """

    repo: Path
    sandbox: str | None = None
    image: str | None = None
    base: str | None = None
    wait: bool = False
    host: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be run, and where.

    Attributes:
        options: what was asked for.
        repo: the repository.
        spec: the pipeline, its paths relative to the repository.
        pin: where it comes from.
        provider: makes the sandbox; `why` says why it is not the preferred one, if so.
        image: what the steps run in, `host` for the host's own root.
        artifacts: ARTIFACT_DIR.
    """

    options: VerifyOptions
    repo: Path
    spec: PipelineSpec
    pin: Pin
    provider: SandboxProvider
    why: str
    image: str
    artifacts: Path


@dataclass(frozen=True, slots=True)
class Verified:
    """The answer, and the directory of the run."""

    response: Response
    directory: Path


@asynccontextmanager
async def planned_verification(options: VerifyOptions) -> AsyncGenerator[Planned]:
    """Find the pipeline and the sandbox; nothing is made or run. The provider is closed at the end.

    Raises: ConfigError (no repository, no pipeline, or a wrong one), UnsupportedError.
    """
    asked = options.repo
    if not await asyncio.to_thread(asked.is_dir):
        there = await asyncio.to_thread(asked.exists)
        raise ConfigError("is not a directory" if there else "does not exist", file=str(asked))
    project = await find_project(asked)
    repo = project.repo
    pin = await find_pin(repo, options.base, project.file(CONFIG_FILE))
    spec = placed(parse_pipeline(pin.data, pin.file), project.place)
    if options.image is not None:
        image = None if options.image == HOST else options.image
        spec = msgspec.structs.replace(spec, image=image)
    provider, why = await _choose(options.sandbox)
    try:
        host_root = provider.capabilities().host_root
        if options.image == HOST and not host_root:
            raise UnsupportedError(
                f"sandbox `{provider.name}` cannot use this machine's own root; use --sandbox local"
            )
        image = spec.image or (HOST if host_root else DEFAULT_IMAGE)
        artifacts = artifact_root(None, options.host)
        yield Planned(options, repo, spec, pin, provider, why, image, artifacts)
    finally:
        await provider.aclose()


async def run_planned(
    planned: Planned, *, emit: Callable[[RunEvent], None], say: Callable[[str], None]
) -> Verified:
    """Run it, and remove runs that are older than what is kept.

    `emit` gets what happens in the run, `say` lines for a person besides that.

    Raises: as `run_pipeline`; InfraError (somebody else verifies the repository).
    """
    options, spec = planned.options, planned.spec
    repo = planned.repo
    if planned.artifacts.resolve().is_relative_to(repo):  # before anything is made there
        raise ConfigError(
            "the artifact directory lies in the repository; set AGENT_ARTIFACT_DIR to another",
            file=str(planned.artifacts),
        )
    now = options.clock.now()
    run_id = new_run_id(now)
    lock = repository_lock(
        planned.artifacts, repo, run_id=run_id, since=stamp(now), wait=options.wait, on_wait=say
    )
    directory = planned.artifacts / "runs" / run_id
    async with lock:
        request = RunRequest(
            repo=repo, spec=spec, provider=planned.provider, clock=options.clock,
            artifacts=planned.artifacts, pin=planned.pin, host=options.host, run_id=run_id,
            on_event=emit,
        )  # fmt: skip
        try:
            response = await run_pipeline(request)
        except ConfigError as error:
            raise _with_way_out(error, planned) from error
        swept = await asyncio.to_thread(
            sweep, planned.artifacts, repo, spec.retention, options.clock.now(), alone=True
        )
    for problem in swept.problems:
        say(f"an old run could not be removed: {problem}")
    return Verified(response, directory)


def _with_way_out(error: ConfigError, planned: Planned) -> ConfigError:
    """Where an image is missing but none is needed, say so."""
    if error.field != "image" or not planned.provider.capabilities().host_root:
        return error
    remedy = "or give --image host, to use this machine's own root, read-only"
    return ConfigError(f"{error.message}; {remedy}", error.file, error.field)


async def _choose(name: str | None) -> tuple[SandboxProvider, str]:
    """A provider that works here, probed, and why it is not the first choice. Whoever gets it
    closes it.

    Raises: UnsupportedError: the one asked for does not work, or none does.
    """
    problems: list[str] = []
    for each in _PREFERRED if name is None else (name,):
        provider = compose.sandbox_provider(each)
        try:
            report = await provider.probe()
            if report.ok:
                return provider, "; ".join(problems)
            why = "; ".join(filter(None, (report.detail, report.remedy)))
        except InfraError as error:
            why = str(error)
        except BaseException:
            await provider.aclose()
            raise
        await provider.aclose()
        problems.append(f"sandbox `{each}`: {why}")
    raise UnsupportedError("; ".join(problems))
