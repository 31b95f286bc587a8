"""Read a task of the legacy Terminal-Bench format (`task.yaml`) into a Task."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.inside import SOLUTION_DIR, TESTS_DIR
from ramify.contracts.sandbox import (
    BuildSpec,
    NetworkMode,
    NetworkPolicy,
    SandboxSpec,
)
from ramify.contracts.task import SolutionSettings, Task, TaskPackage, VerifierSettings
from ramify.tasks.composefile import legacy_sandbox
from ramify.tasks.digest import package_digest
from ramify.tasks.dockerfile import workdir_of_dockerfile
from ramify.tasks.texts import read_text
from ramify.tasks.worlds import compose_file
from ramify.tasks.yamltext import load_yaml, parse_yaml_value

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
_KEYSTROKES = re.compile(r"(?:[CM]-.|\^.|Enter|Escape|Tab|Up|Down|Left|Right|BSpace)")


class _TaskYaml(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`task.yaml`; the defaults are Terminal-Bench's."""

    instruction: Annotated[str, msgspec.Meta(min_length=1)]
    author_name: str = "unknown"
    author_email: str = "unknown"
    difficulty: str | int = "unknown"
    category: str = "software_engineering"
    tags: list[str] = []
    parser_name: Literal["pytest", "swebench", "swelancer", "mlebench", "sweperf"] = "pytest"
    max_agent_timeout_sec: _Seconds = 360.0
    max_test_timeout_sec: _Seconds = 60.0
    run_tests_in_same_shell: bool = False
    disable_asciinema: bool = False
    estimated_duration_sec: float | None = None
    expert_time_estimate_min: float | None = None
    junior_time_estimate_min: float | None = None


class _Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of `solution.yaml`: what is typed into the terminal."""

    command: str
    min_timeout_sec: float = 0.0
    max_timeout_sec: float = 180.0
    block: bool = False
    append_enter: bool = True


# msgspec works a type out when it first meets it, and two threads must not make it do so at once.
msgspec.json.Decoder(_TaskYaml)
msgspec.json.Decoder(_Command)

_FACTS = (
    "author_name",
    "author_email",
    "difficulty",
    "category",
    "tags",
    "estimated_duration_sec",
    "expert_time_estimate_min",
    "junior_time_estimate_min",
)


def read_legacy_task(root: Path, task_id: str) -> Task:
    """Read one legacy task directory. The reward is 1 when its parser finds that all tests passed.

    Raises:
        ConfigError: something is missing or wrong; names file and field.
        UnsupportedError: the task asks for something that is not served; names file and field.
    """
    file = root / "task.yaml"
    table = _checked(load_yaml(file), str(file))
    if table.run_tests_in_same_shell:
        raise UnsupportedError(
            f"{file}: run_tests_in_same_shell: tests in the agent's own shell are not supported; "
            "they run in a shell that the agent never had"
        )
    facts = {name: getattr(table, name) for name in _FACTS}
    return Task(
        task_id=task_id,
        input=table.instruction,
        metadata={name: value for name, value in facts.items() if value not in (None, [])},
        package=TaskPackage(
            path=str(root),
            digest=package_digest(root),
            sandbox=_sandbox(root),
            verifier=_verifier(root, table),
            solution=_solution(root),
            agent_timeout_sec=table.max_agent_timeout_sec,
        ),
    )


def _checked(table: dict[str, Any], file: str) -> _TaskYaml:
    known = [field.name for field in msgspec.structs.fields(_TaskYaml)]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown key; {hint}", file=file, field=key)
    try:
        return msgspec.convert(table, _TaskYaml)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        raise ConfigError(message, file=file, field=place.rstrip("`") or None) from None


def _sandbox(root: Path) -> SandboxSpec:
    compose = compose_file(root)
    if compose is not None:
        return legacy_sandbox(compose)
    if (root / "Dockerfile").is_file():
        return SandboxSpec(
            build=BuildSpec(str(root)),
            workdir=workdir_of_dockerfile(read_text(root / "Dockerfile")),
            network=NetworkPolicy(NetworkMode.OPEN),
        )
    raise ConfigError(
        "is missing, and there is no Dockerfile either; one of them says what the task runs in",
        file=str(root / "docker-compose.yaml"),
    )


def _verifier(root: Path, table: _TaskYaml) -> VerifierSettings:
    if not (root / "run-tests.sh").is_file():
        raise ConfigError("is missing; it runs the tests", file=str(root / "run-tests.sh"))
    sources = [name for name in ("tests", "run-tests.sh") if (root / name).exists()]
    return VerifierSettings(
        command=("bash", f"{TESTS_DIR}/run-tests.sh"),
        tests=sources[0],
        more_tests=tuple(sources[1:]),
        parser=table.parser_name,
        timeout_sec=table.max_test_timeout_sec,
        env={"TEST_DIR": TESTS_DIR},
        network=NetworkPolicy(NetworkMode.OPEN),
    )


def _solution(root: Path) -> SolutionSettings | None:
    if (root / "solution.sh").is_file():
        return SolutionSettings("solution.sh", ("bash", f"{SOLUTION_DIR}/solution.sh"))
    file = root / "solution.yaml"
    if file.is_file():
        return SolutionSettings(script=_script(read_text(file), str(file)))
    return None


def _script(text: str, file: str) -> str:
    """What solution.yaml types into a terminal, as a shell script."""
    try:
        commands = msgspec.convert(parse_yaml_value(text, file), list[_Command])
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), file=file) from None
    lines = ["#!/bin/bash"]
    for index, entry in enumerate(commands):
        if not entry.append_enter or _KEYSTROKES.fullmatch(entry.command.strip()):
            raise UnsupportedError(
                f"{file}: command {index + 1}: single keystrokes ({entry.command!r}) are not "
                "supported; write a solution.sh"
            )
        lines.append(entry.command.rstrip("\n"))
        if not entry.block and entry.min_timeout_sec > 0:
            lines.append(f"sleep {entry.min_timeout_sec:g}")
    return "\n".join(lines) + "\n"
