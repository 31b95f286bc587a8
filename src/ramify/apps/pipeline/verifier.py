"""A pipeline as a `Verifier`: called on a candidate, it passes or sends it back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ramify.apps.pipeline.config import read_pipeline
from ramify.apps.pipeline.project import find_project, placed
from ramify.apps.pipeline.records import PipelineSpec, Response
from ramify.apps.pipeline.retention import sweep
from ramify.apps.pipeline.run import RunRequest, run_pipeline
from ramify.contracts.context import Clock
from ramify.contracts.errors import VerificationRejected
from ramify.contracts.sandbox import SandboxProvider
from ramify.engine.clock import SystemClock

_TOLD_LINES = 60


class PipelineVerifier:
    """Verifies a working tree with a pipeline that the candidate cannot change.

    Args:
        repo: the working tree, as it stands whenever this is called, or a directory of it: then
            steps run there, and all of it is guarded.
        pipeline: the pipeline, or the file that declares it: outside of the repository, or a copy.
            It is read once, here.
        provider: makes the sandboxes.
        artifacts: ARTIFACT_DIR. Old runs of the repository go as the pipeline's `retention` says.
        clock: time.

    Raises:
        ConfigError: the file is not usable.
    """

    def __init__(
        self,
        repo: Path,
        pipeline: PipelineSpec | Path,
        provider: SandboxProvider,
        artifacts: Path,
        clock: Clock | None = None,
    ) -> None:
        self._repo, self._provider, self._artifacts = repo, provider, artifacts
        self._spec = read_pipeline(pipeline) if isinstance(pipeline, Path) else pipeline
        self._clock = clock or SystemClock()

    async def __call__(self, candidate: object) -> Response:
        """Verify the working tree; the candidate is what led to it, or a path of another tree.

        Raises:
            VerificationRejected: FAIL. `code` is the reason, `metadata` has run_id, reason,
                tail_log and artifact_paths.
            InfraError, UsageError: our side; it does not count.
        """
        project = await find_project(candidate if isinstance(candidate, Path) else self._repo)
        spec = placed(self._spec, project.place)
        response = await run_pipeline(
            RunRequest(project.repo, spec, self._provider, self._clock, self._artifacts)
        )
        # What cannot be removed now (another user's) is tried again after the next run.
        await asyncio.to_thread(
            sweep, self._artifacts, project.repo, spec.retention, self._clock.now()
        )
        if not response.passed:
            raise rejection(response)
        return response


def rejection(response: Response) -> VerificationRejected:
    """A response that is FAIL, as what a verifier raises; the message is for the agent."""
    metadata: dict[str, Any] = {
        "run_id": response.run_id,
        "reason": response.reason,
        "tail_log": response.tail_log,
        "artifact_paths": list(response.artifact_paths),
    }
    told = "\n".join(response.tail_log.splitlines()[-_TOLD_LINES:])
    message = f"verification failed (run {response.run_id}): {response.message}"
    return VerificationRejected(f"{message}\n{told}".rstrip(), response.reason, metadata)
