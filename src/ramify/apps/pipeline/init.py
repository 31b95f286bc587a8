"""A first `agent.yaml` for a repository."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ramify.apps.pipeline.config import EXAMPLE, parse_pipeline
from ramify.apps.pipeline.projects import FoundStep, Project, find_projects
from ramify.apps.pipeline.records import CONFIG_FILE
from ramify.contracts.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ._/=+~-]*[A-Za-z0-9._/-]|[A-Za-z]")
_NOT_PLAIN = re.compile(r"\s#|: |^(true|false|yes|no|on|off|null|y|n)$", re.IGNORECASE)

_HEAD = """\
# What has to pass before work on this repository counts as done: `ramify verify` runs it.
#
# Steps run in order, in a fresh sandbox; the first that fails ends the run. All of them run every
# time. They see this repository at its own path and may write into it as into a copy: the
# repository itself is never changed, and a step that changes what git does not ignore fails.
#
# $TMPDIR (temporary files), $JUNIT_DIR (test reports) and $VERIFIER_OUTPUTS (what to keep) are
# directories of the run; caches of package managers and test runners go there by themselves.
# Use flags that forbid changes: --frozen-lockfile, --locked, --ci, --check.
"""


def first_config(repository: Path) -> str:
    """The text of an `agent.yaml` for what `repository` holds.

    Raises:
        ConfigError: no project that is known, or a file of it is broken.
    """
    projects = find_projects(repository)
    if not projects:
        raise ConfigError(
            "holds no Python (pyproject.toml, setup.py, requirements.txt), Node (package.json) or "
            f"Rust (Cargo.toml) project at its top; write {CONFIG_FILE} yourself, such as "
            f"{EXAMPLE!r}",
            file=str(repository),
        )
    text = "\n".join(_lines(projects)) + "\n"
    parse_pipeline(text.encode(), CONFIG_FILE)
    return text


def write_first_config(repository: Path) -> Path:
    """Write it; the file it is in.

    Raises:
        ConfigError: as `first_config`; or there is one already, which is never overwritten.
        OSError: it cannot be written.
    """
    path = repository / CONFIG_FILE
    if os.path.lexists(path):
        raise ConfigError(
            "is there already and is not overwritten; `ramify verify init --print` shows what it "
            "would hold",
            file=str(path),
        )
    text = first_config(repository)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return path


def _lines(projects: list[Project]) -> Iterator[str]:
    yield _HEAD + "verification:"
    yield "  timeout: 30m"
    if len(projects) == 1:
        yield f"  image: {projects[0].image}  # must hold what the steps call"
    else:
        images = " and ".join(project.image for project in projects)
        yield f"  # image: (one that holds what is in {images})"
    yield '  env: {CI: "1"}'
    if protected := [path for project in projects for path in project.protected]:
        yield "  # Where an agent works on the repository, what it must not change to pass:"
        yield f"  # protected_paths: {json.dumps(protected)}"
    yield "  steps:"
    for project in projects:
        for step in project.steps:
            yield from _step(step, "" if len(projects) == 1 else project.kind.lower() + "-")
        if all("test" not in step.name for step in project.steps):
            yield f"    # no tests of the {project.kind} project were found: add a step for them"


def _step(step: FoundStep, prefix: str) -> Iterator[str]:
    if step.note:
        yield f"    # {step.note}"
    yield f"    - name: {prefix}{step.name}"
    if "\n" in step.command:
        yield "      command: |"
        yield from (f"        {line}" for line in step.command.splitlines())
    else:
        yield f"      command: {_scalar(step.command)}"
    if step.network:
        yield "      network: full  # all other steps reach nothing"


def _scalar(text: str) -> str:
    plain = _PLAIN.fullmatch(text) and not _NOT_PLAIN.search(text)
    if plain:
        return text
    return json.dumps(text, ensure_ascii=False) if "'" in text or not text.isprintable() else (
        f"'{text}'"
    )  # fmt: skip
