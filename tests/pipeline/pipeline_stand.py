"""A repository to verify, a provider to verify it in, and a digest that tells any change of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from ramify import compose
from ramify.apps.pipeline.pins import Pin
from ramify.apps.pipeline.records import PipelineSpec, Response, RunEvent, StepSpec
from ramify.apps.pipeline.run import RunRequest, run_pipeline
from ramify.contracts.sandbox import SandboxProvider
from ramify.engine.clock import SystemClock

IMAGES = {"local": None, "docker": "debian:bookworm-slim"}
_QUIET = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
_NAMES = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def git(repo: Path, *args: str) -> str:
    """Run git in a repository."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(repo), **_QUIET}
    done = subprocess.run(
        ["git", *_NAMES, *args], cwd=repo, env=environment, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def commit(repo: Path, message: str = "work") -> str:
    """Commit everything; the commit's id."""
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", message)
    return git(repo, "rev-parse", "HEAD")


def make_repository(place: Path) -> Path:
    """A small repository with all kinds of files, one commit, something ignored, a draft."""
    repo = place / "repo"
    for path in ("src/lib", "docs", "bin", "build"):
        (repo / path).mkdir(parents=True)
    (repo / "README.md").write_text("hello\n")
    (repo / "src/app.py").write_text("print(1)\n")
    (repo / "src/lib/util.py").write_text("x = 1\n")
    (repo / "docs/a.txt").write_text("a\n")
    (repo / "docs/b.txt").write_text("b\n")
    (repo / "bin/run.sh").write_text("#!/bin/sh\necho run\n")
    (repo / "bin/run.sh").chmod(0o755)
    (repo / "link").symlink_to("README.md")
    (repo / ".gitignore").write_text("build/\n*.log\n")
    (repo / "build/old.o").write_text("old\n")
    git(repo, "init", "-q")
    commit(repo, "first")
    (repo / "draft.txt").write_text("not added yet\n")
    return repo


def digest(tree: Path) -> str:
    """Everything about a tree: names, modes, owners, times of change, links, content."""
    hasher = hashlib.sha256()
    for place, directories, files in os.walk(tree):
        directories.sort()
        for name in sorted([*directories, *files, "."]):
            path = os.path.join(place, name)
            facts = os.lstat(path)
            told = (path, facts.st_mode, facts.st_uid, facts.st_mtime_ns, facts.st_ctime_ns)
            hasher.update(repr(told).encode())
            if os.path.islink(path):
                hasher.update(os.fsencode(os.readlink(path)))
            elif os.path.isfile(path):
                hasher.update(Path(path).read_bytes())
    return hasher.hexdigest()


@asynccontextmanager
async def provider_of(name: str) -> AsyncGenerator[SandboxProvider]:
    """A provider, closed in the end."""
    provider = compose.sandbox_provider(name)
    try:
        yield provider
    finally:
        await provider.aclose()


def pipeline(*commands: str, **how: object) -> PipelineSpec:
    """A pipeline of these commands; the grace is short."""
    steps = tuple(StepSpec(f"step{i}", command) for i, command in enumerate(commands, 1))
    return PipelineSpec(steps, **{"grace_sec": 0.3, **how})  # type: ignore[arg-type]  (a test's)


async def verify(
    provider: SandboxProvider,
    repo: Path,
    spec: PipelineSpec,
    *,
    pin: Pin | None = None,
    host: dict[str, str] | None = None,
    events: list[RunEvent] | None = None,
    base: str = "",
) -> Response:
    """Run a pipeline; artifacts go beside the repository."""
    if spec.image is None and IMAGES[provider.name] is not None:
        spec = msgspec.structs.replace(spec, image=IMAGES[provider.name])
    return await run_pipeline(
        RunRequest(
            repo,
            spec,
            provider,
            SystemClock(),
            repo.parent / "artifacts",
            pin=pin,
            host={"PATH": os.environ["PATH"], **(host or {})},
            base=base,
            on_event=(events if events is not None else []).append,
        )
    )


def run_directory(response: Response) -> Path:
    """Where the run left its things."""
    return Path(response.artifact_paths[0]).parent
