"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import click

from ramify.contracts.errors import ConfigError
from ramify.engine.reading import JOB_FILE

_C = TypeVar("_C", bound=Callable[..., object])

DEFAULT_TASKS = "examples/tasks"


def pairs(values: Iterable[str], flag: str) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises ConfigError for a text without `=`."""
    found: dict[str, str] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{value!r} is not key=value", field=flag)
        found[key.strip()] = text
    return found


def task_options(function: _C) -> _C:
    """Which tasks, and where they run."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Machine-readable output."),
        click.option("-c", "--concurrency", default=4, show_default=True, help="Rollouts at once."),
        click.option(
            "-s", "--sandbox", default="local", show_default=True, metavar="NAME",
            help="Where they run: local, docker, bare, or an import path.",
        ),
        click.option("-T", "taskset_option", multiple=True, metavar="KEY=VALUE",
                     help="Option of the taskset."),
        click.option("--exclude", multiple=True, metavar="ID",
                     help="All but this task; may be repeated."),
        click.option("--task-id", multiple=True, help="Only this task; may be repeated."),
        click.option("--limit", type=int, help="Only the first so many tasks."),
    ):  # fmt: skip
        function = option(function)
    return function


def model_options(function: _C) -> _C:
    """The policy, how it is sampled, and how much of it an agent may use."""
    for option in (
        click.option("--max-context", type=click.IntRange(1), metavar="N",
                     help="Tokens of the model's context."),
        click.option("--max-turns", type=click.IntRange(1), metavar="N",
                     help="Model calls of a rollout, at most."),
        click.option("--max-total-tokens", type=click.IntRange(1), metavar="N",
                     help="Tokens of a rollout, in and out, at most."),
        click.option("--max-tokens", type=click.IntRange(1), metavar="N",
                     help="Tokens of one answer, at most."),
        click.option("--temperature", type=click.FloatRange(0), help="Sampling temperature."),
        click.option("-M", "model_option", multiple=True, metavar="KEY=VALUE",
                     help="Option of the model, e.g. stream=true, api_key_env=NAME."),
        click.option("--base-url", metavar="URL",
                     help="The model's endpoint, up to /v1 (default: OPENAI_BASE_URL)."),
        click.option("-m", "--model", metavar="PROVIDER/NAME", help="The policy, e.g. openai/x."),
    ):  # fmt: skip
        function = option(function)
    return function


def judge_options(function: _C) -> _C:
    """The model that judges, where one does."""
    for option in (
        click.option("-J", "judge_option", multiple=True, metavar="KEY=VALUE",
                     help="Option of the judge's model, as -M of the policy's."),
        click.option("--judge-base-url", metavar="URL", help="The judge's endpoint, up to /v1."),
        click.option("--judge-model", metavar="PROVIDER/NAME",
                     help="The model that judges, where one does."),
    ):  # fmt: skip
        function = option(function)
    return function


def rubric_options(function: _C) -> _C:
    """How rewards are computed, other than by the tasks' own tests."""
    return click.option(
        "--rubric",
        metavar="PLACE",
        help="Score with this rubric: file.py:name or package.module:name.",
    )(judge_options(function))


tasks_argument = click.argument("tasks", default=DEFAULT_TASKS, metavar="[TASKS]")
"""A task directory, a directory of them, or a taskset's name."""


def is_run_directory(
    ctx: click.Context, parameter: click.Parameter, path: Path | None
) -> Path | None:
    """Checks a path that was given. Raises ConfigError: it is no run directory."""
    if path is not None and not (path / JOB_FILE).is_file():
        raise ConfigError(f"is not a run directory (it holds no {JOB_FILE})", file=str(path))
    return path


job_argument = click.argument(
    "job",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    callback=is_run_directory,
)
"""A run directory."""
