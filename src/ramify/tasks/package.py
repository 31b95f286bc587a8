"""Read a task directory (Harbor's format, with our additions) into a Task."""

from __future__ import annotations

import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import NetworkPolicy, SandboxSpec
from ramify.contracts.task import (
    RESERVED_KEYS,
    SolutionSettings,
    Task,
    TaskPackage,
    TaskStep,
)
from ramify.tasks.digest import package_digest
from ramify.tasks.fields import Fields, healthcheck, user_name
from ramify.tasks.legacy import read_legacy_task
from ramify.tasks.schema import (
    RamifyTable,
    StepTable,
    TaskToml,
    check_task_toml,
    parse_task_toml,
)
from ramify.tasks.taskmd import is_package_document, read_task_md
from ramify.tasks.texts import read_instruction
from ramify.tasks.worlds import Layout, Worlds

_FOREIGN_FILES: Mapping[str, str] = {
    "trajectory.json": "prior context of a task",
    "environment/singularity-compose.yaml": "Singularity environments",
}
"""Files of the format that ask for something not served yet."""

_PORTABLE = re.compile(r"[^<>:\"/\\|?*\x00-\x1f\x7f]{1,255}")


def read_task(path: Path, task_id: str, environ: Mapping[str, str] | None = None) -> Task:
    """Read one task directory, whatever its format: Harbor's, Terminal-Bench's or BenchFlow's.

    `${VAR}` and `${VAR:-default}` as the whole value of an `env` entry are taken from `environ`
    (default: this process's environment). The Task's `input` is instruction.md; `metadata` is
    `[metadata]`, with `[task]` and `source` under `package_info`.

    A task's network: `[agent]` overrides `[environment]`, which defaults to public. The verifier
    gets its own `network_mode`, else the environment's (Harbor's rule); with a `[ramify]` table
    it gets none unless it asks.

    Raises:
        ConfigError: something is missing or wrong; names file and field.
        UnsupportedError: the task asks for something not served yet; names file and field.
    """
    root = path.resolve()
    _refuse_foreign(root)
    has_toml = (root / "task.toml").is_file()
    if not has_toml and (root / "task.yaml").is_file():
        return read_legacy_task(root, task_id)
    document = root / "task.md"
    # Beside a task.toml, a task.md counts where it is a package's and no mere description.
    if (not has_toml and document.is_file()) or is_package_document(document):
        raw, said = read_task_md(document)
        table = check_task_toml(raw, str(document))
        return _task(task_id, root, str(document), table, said, environ, _benchflow_layout(root))
    table = parse_task_toml(root / "task.toml")
    prompt = None if table.steps else read_instruction(root / "instruction.md")
    file = str(root / "task.toml")
    return _task(task_id, root, file, table, prompt, environ)


def _task(
    task_id: str,
    root: Path,
    file: str,
    table: TaskToml,
    prompt: str | None,
    environ: Mapping[str, str] | None = None,
    layout: Layout | None = None,
) -> Task:
    """A Task out of its table, wherever that came from.

    Args:
        task_id: canonical.
        root: the task directory.
        file: where the table stands, for errors.
        table: what it says.
        prompt: the instruction; None for a multi-step task, whose steps bring their own.
        environ: as for `read_task`.
        layout: where the parts of the task are.
    """
    reader = _Reader(
        root, file, table, os.environ if environ is None else environ, layout or Layout()
    )
    package = reader.package()
    return Task(
        task_id=task_id,
        input=package.steps[0].instruction if prompt is None else prompt,
        metadata=reader.metadata(),
        package=package,
    )


def _benchflow_layout(root: Path) -> Layout:
    """Where a package has its parts: in directories of its own, else in Harbor's."""
    tests = "verifier" if (root / "verifier").is_dir() else "tests"
    solution = "oracle" if (root / "oracle").is_dir() else "solution"
    return Layout(tests=tests, solution=solution)


def is_task_dir(path: Path) -> bool:
    """Whether a directory is meant as a task, in any of the formats."""
    names = ("task.toml", "instruction.md", "task.yaml", "task.md")
    return any((path / name).is_file() for name in names)


class _Reader:
    """One task directory being read; checks each table against the directory."""

    def __init__(
        self,
        root: Path,
        file: str,
        table: TaskToml,
        environ: Mapping[str, str],
        layout: Layout,
    ) -> None:
        self._root, self._file, self._table, self._layout = root, file, table, layout
        self._native = table.ramify or RamifyTable()
        self._fields = Fields(file, environ)
        self._worlds = Worlds(root, table, self._native, self._fields, layout)

    def metadata(self) -> dict[str, Any]:
        table = self._table
        if reserved := sorted(RESERVED_KEYS.intersection(table.metadata)):
            raise self._error(
                "metadata", f"{', '.join(reserved)}: reserved for the agent's run; rename or remove"
            )
        facts: dict[str, Any] = {}
        if table.task is not None:
            facts = {
                "name": table.task.name,
                "version": table.task.version,
                "description": table.task.description,
                "authors": [{"name": a.name, "email": a.email} for a in table.task.authors],
                "keywords": table.task.keywords,
            }
        facts["source"] = table.source
        info = {key: value for key, value in facts.items() if value}
        # Dates become text here, so that metadata is the same after any trip through JSON.
        metadata: dict[str, Any] = json.loads(json.dumps(table.metadata, default=str))
        if info and "package_info" in metadata:
            raise self._error("metadata.package_info", "is the name [task] goes by; rename it")
        return {**metadata, "package_info": info} if info else metadata

    def package(self) -> TaskPackage:
        table, native, fields = self._table, self._native, self._fields
        baseline = fields.baseline("environment", table.environment)
        agent_network = self._agent_network(baseline)
        sandbox = self._worlds.agent_sandbox(agent_network)
        steps = self._steps(sandbox)
        if native.isolation is not None and steps:
            raise fields.error("ramify.isolation", "has no meaning in a multi-step task; remove it")
        return TaskPackage(
            path=str(self._root),
            digest=package_digest(self._root),
            sandbox=sandbox,
            verifier=steps[0].verifier if steps else self._worlds.verifier(sandbox),
            solution=None if steps else self._solution(self._layout.solution),
            agent_timeout_sec=table.agent.timeout_sec or 600.0,
            agent_user=self._agent_user(),
            files=self._below("files", native.files, directory=True),
            setup=self._below("setup", native.setup, directory=False),
            setup_timeout_sec=native.setup_timeout_sec,
            healthcheck=healthcheck(table.environment.healthcheck),
            outputs=fields.paths("ramify.outputs", native.outputs),
            artifacts=fields.artifacts("artifacts", table.artifacts),
            needs=fields.programs("ramify.needs", native.needs),
            host_root_ok=native.image_free,
            mcp_servers=fields.mcp_servers(
                "environment.mcp_servers", table.environment.mcp_servers
            ),
            skills_dir=fields.absolute("environment.skills_dir", table.environment.skills_dir),
            world=self._world(),
            services=tuple(table.environment.services),
            steps=steps,
            reward_strategy=table.multi_step_reward_strategy or "mean",
        )

    def _agent_network(self, baseline: NetworkPolicy) -> NetworkPolicy:
        """One network for the whole session, which does not change under a live agent."""
        task = self._fields.phase("agent", self._table.agent) or baseline
        for step in self._table.steps or ():
            own = self._fields.phase("steps.agent", step.agent)
            if own is not None and own != task:
                raise self._fields.unsupported(
                    "steps.agent.network_mode",
                    f"step {step.name!r} asks for another network than [agent]; one live session "
                    "has one",
                )
        return task

    def _agent_user(self) -> str | None:
        task = user_name(self._table.agent.user)
        for step in self._table.steps or ():
            if step.agent.user is not None and user_name(step.agent.user) != task:
                raise self._fields.unsupported(
                    "steps.agent.user",
                    f"step {step.name!r} asks for another user than [agent]; one live session "
                    "has one",
                )
        return task

    def _steps(self, sandbox: SandboxSpec) -> tuple[TaskStep, ...]:
        tables = self._table.steps or []
        if self._table.multi_step_reward_strategy is not None and not tables:
            raise self._fields.error(
                "multi_step_reward_strategy", "has no meaning without [[steps]]"
            )
        seen: set[str] = set()
        found: list[TaskStep] = []
        for table in tables:
            key = unicodedata.normalize("NFC", table.name).casefold()
            if key in seen:
                raise self._fields.error("steps.name", f"{table.name!r} is there twice")
            seen.add(key)
            found.append(self._step(table, sandbox))
        return tuple(found)

    def _step(self, table: StepTable, sandbox: SandboxSpec) -> TaskStep:
        name = table.name
        if not _PORTABLE.fullmatch(name) or name.endswith((".", " ")) or not name.strip():
            raise self._fields.error("steps.name", f"{name!r} cannot be the name of a directory")
        folder = self._root / "steps" / name
        if (folder / "trajectory.json").exists():
            raise UnsupportedError(
                f"{folder / 'trajectory.json'}: prior context of a step is not supported yet"
            )
        step = self._worlds.step(sandbox, table, read_instruction(folder / "instruction.md"))
        own = f"steps/{name}/solution"
        place = own if (self._root / own).is_dir() else self._layout.solution
        return msgspec.structs.replace(step, solution=self._solution(place))

    def _solution(self, place: str) -> SolutionSettings | None:
        if (self._root / place / "solve.sh").is_file():
            env = self._fields.env("solution.env", self._table.solution.env)
            return SolutionSettings(path=place, env=env)
        if (self._root / place).is_dir():
            raise ConfigError(
                f"is missing; the directory {place}/ has no other entry point",
                file=str(self._root / place / "solve.sh"),
            )
        return None

    def _below(self, field: str, value: str | None, *, directory: bool) -> str | None:
        """A path of the package that must exist in it."""
        if value is None:
            return None
        clean = posixpath.normpath(value)
        if clean.startswith(("/", "..")) or clean == ".":
            raise self._error(f"ramify.{field}", f"{value!r} must be a path below the task")
        place = self._root / clean
        if not (place.is_dir() if directory else place.is_file()):
            kind = "directory" if directory else "file"
            raise self._error(f"ramify.{field}", f"no {kind} {value!r} in the task")
        return clean

    def _world(self) -> str | None:
        """The manifest of the task's world, which may stand beside the task."""
        if self._native.world is None:
            return None
        place = (self._root / self._native.world).resolve()
        if not place.is_file():
            raise self._error(
                "ramify.world", f"there is no manifest {place}; give its path from the task"
            )
        return str(place)

    def _error(self, field: str, message: str) -> ConfigError:
        return ConfigError(message, file=self._file, field=field)


def _refuse_foreign(root: Path) -> None:
    if not root.is_dir():
        raise ConfigError("is not a directory; give a task directory", file=str(root))
    for name, what in _FOREIGN_FILES.items():
        if (root / name).exists():
            raise UnsupportedError(f"{root / name}: {what} are not supported yet")
