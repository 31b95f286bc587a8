"""How the manifest of a task's world says that the task is verified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramify.contracts.task import Task
from ramify.planes.environment.manifest import Manifest, load_manifest


@dataclass(frozen=True, slots=True)
class Grading:
    """The table `[verifier]` of a manifest, with places made absolute.

    Attributes:
        kind: `script`, `rubric`, `agent` or `pipeline`.
        manifest: the file that says so; None where a task has no world.
        rubric: `/abs/file.py:name`, or `package.module:name`.
        agent: name of the agent that grades.
        instruction: what that agent is told.
        verdict: where it leaves its verdict.
    """

    kind: Literal["script", "rubric", "agent", "pipeline"] = "script"
    manifest: Path | None = None
    rubric: str = ""
    agent: str = ""
    instruction: str = ""
    verdict: Literal["answer", "file"] = "answer"


def grading_of(task: Task) -> Grading:
    """How a task is verified; by its script without a world. Raises: ConfigError (manifest)."""
    package = task.package
    if package is None or package.world is None:
        return Grading()
    manifest = load_manifest(Path(package.world))
    spec = manifest.verifier
    return Grading(
        spec.kind,
        manifest.path,
        _rubric(manifest),
        spec.agent,
        _instruction(manifest),
        spec.verdict,
    )


def grading_digest(manifest: Manifest) -> str:
    """Identifies the content of the files that the table names; empty where it names none."""
    places = [place for place in (manifest.rubric_file, manifest.instruction_file) if place]
    if not places:
        return ""
    total = hashlib.blake2b(digest_size=16)
    for place in places:
        content = place.read_bytes()
        total.update(len(content).to_bytes(8, "big") + content)
    return total.hexdigest()


def _rubric(manifest: Manifest) -> str:
    place = manifest.rubric_file
    if place is None:
        return manifest.verifier.rubric or ""
    return f"{place}:{(manifest.verifier.rubric or '').rpartition(':')[2]}"


def _instruction(manifest: Manifest) -> str:
    place = manifest.instruction_file
    return manifest.verifier.instruction or "" if place is None else place.read_text()
