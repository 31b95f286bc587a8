"""What scores the tasks of a job, and the model that judges, where one does."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ramify import compose
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.model import Model
from ramify.contracts.reward import Reward
from ramify.contracts.task import IsolationLevel, ScriptProfile, Task, TaskPackage
from ramify.envs.stages import stage_levels

POLICY = "policy"
"""The judge's name where somebody wants the policy to judge itself."""


@dataclass(frozen=True, slots=True)
class Scorers:
    """Makes what scores each task. Tasks that are verified alike share one scorer.

    Attributes:
        given: the caller's own reward, which scores everything.
        judge: the model that graders may ask.
    """

    given: Reward | None
    judge: Model | None
    _made: dict[object, Reward] = field(default_factory=dict[object, Reward])

    def of(
        self, task: Task, level: IsolationLevel, profile: ScriptProfile
    ) -> Mapping[IsolationLevel, Reward]:
        """A scorer for each level that a stage of the task is verified at; scripts as `profile`.

        Raises: ConfigError (nothing says how it is scored), UsageError (a judge is needed).
        """
        return {each: self._one(task, each, profile) for each in stage_levels(task, level)}

    def _one(self, task: Task, level: IsolationLevel, profile: ScriptProfile) -> Reward:
        if self.given is not None:
            return self.given
        package = task.package
        if package is None:
            raise ConfigError(
                f"{task.task_id} comes without a task directory, so nothing says how it is "
                "scored; give a reward function"
            )
        how = compose.grading(task)
        if how.kind == "script":
            _check_script(package)
        key = (profile if how.kind == "script" else how, level)
        if key not in self._made:
            self._made[key] = compose.grader(how, level, profile, self.judge)
        return self._made[key]


def decided_by_script(task: Task) -> bool:
    """Whether a script decides, and not our own runner or what the task's world names."""
    package = task.package
    if package is None or compose.grading(task).kind != "script":
        return False
    settings = [step.verifier for step in package.steps] or [package.verifier]
    return any(one.grading is None or one.grading.runner is None for one in settings)


def _check_script(package: TaskPackage) -> None:
    """Raise ConfigError where a script decides and there is none.

    A package is read without one where it names a world, whose manifest may say otherwise.
    """
    for settings in [step.verifier for step in package.steps] or [package.verifier]:
        places = [Path(package.path) / name for name in (settings.tests, *settings.more_tests)]
        bundled = not settings.tests and settings.separate  # in the verifier's own image
        found = bundled or settings.command or settings.parser or settings.grading
        if not found and not any(_holds_script(place) for place in places):
            raise ConfigError(
                "is missing; it decides the reward, unless the manifest of the task's world has "
                "another verifier.kind",
                file=f"{package.path}/tests/test.sh",
            )


def _holds_script(place: Path) -> bool:
    return (place / "test.sh").is_file() or (place.name == "test.sh" and place.is_file())


def judge_of(
    name: str | Model | None,
    base_url: str | None,
    options: Mapping[str, str],
    policy: tuple[Model | None, str | None],
    clock: Clock,
    seed: int,
) -> Model | None:
    """The model that judges; `policy` is the run's own, and where that is.

    Raises: UsageError (the policy would judge itself, and nobody asked for that by name).
    """
    model, policy_url = policy
    if name is None:
        if base_url is not None or options:
            raise UsageError("options of a judge without one; give --judge-model provider/name")
        return None
    if name == POLICY:
        if model is None:
            raise UsageError("--judge-model policy: this run has no policy")
        return model
    same = name is model
    if isinstance(name, str) and model is not None:
        same = name == model.name and base_url == policy_url
    if same:
        raise UsageError(
            "the judge would be the policy itself, which learns to please itself; choose another "
            f"model, or say so with --judge-model {POLICY}"
        )
    if not isinstance(name, str):
        return name
    return compose.model(name, base_url, options, clock, random.Random(seed))
