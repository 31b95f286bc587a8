"""`agent.yaml` → what is to be run.

The table of keys below says what each may hold: the reader and the JSON Schema both come from it.
Top-level keys other than `verification` belong to other tools and are left alone, but for a few
that are ours by their name: there they would not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ramify.apps.pipeline.fields import (
    CODES,
    COMMAND,
    COUNT,
    CPUS,
    DIRECTORIES,
    DURATION,
    ENV,
    FLAG,
    IMAGE,
    MEBIBYTES,
    NAME,
    NAMES,
    PATHS,
    RELATIVE,
    ROOTED,
    SHELL,
    SIZE,
    Kind,
    choice,
)
from ramify.apps.pipeline.records import (
    CONFIG_FILE,
    CacheSpec,
    PipelineSpec,
    Retention,
    StepSpec,
)
from ramify.apps.pipeline.yamlnodes import Document, Value
from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import Limits

TOP = "verification"
EXAMPLE = "verification: {steps: [{name: test, command: npm test}]}"

_NO_WAY_AROUND = (
    "the whole pipeline always runs: no key leaves a step out, forgives it or tries it again; "
    "where an exit code other than 0 is fine, name it in `allow_exit_codes`"
)
_FORBIDDEN = frozenset(
    {
        "skip", "skipped", "if", "when", "unless", "only", "except", "enabled", "disabled",
        "optional", "allow_failure", "continue_on_error", "soft_fail", "ignore_errors",
        "ignore_failure", "fail_fast", "retry", "retries", "filter", "rules", "manual",
    }
)  # fmt: skip
_CALLED_ELSEWHERE = {
    "run": "command", "script": "command", "cmd": "command", "commands": "command",
    "working_directory": "cwd", "workdir": "cwd", "workingdirectory": "cwd", "dir": "cwd",
    "environment": "env", "variables": "env", "vars": "env",
    "timeout_minutes": "timeout", "timeout_seconds": "timeout", "timeout_sec": "timeout",
    "container": "image", "docker": "image", "jobs": "steps", "stages": "steps",
    "passenv": "pass_env", "max_bytes": "max_artifact_bytes", "grace_sec": "grace",
}  # fmt: skip


_INSTEAD = {
    "services": "start what steps need in a step of its own, with `background: true`",
    "needs": "steps run in the order in which they stand",
    "depends_on": "steps run in the order in which they stand",
    "matrix": "write a step for each; nothing is run that is not written down",
    "uses": "write the shell `command` that it stands for",
}
_OURS = ("protected_paths", "repo_write", "pass_env", "max_artifact_bytes")


class _Key(msgspec.Struct, frozen=True):
    """A key of the file: what it holds, the field of the record it becomes, and what it means."""

    kind: Kind
    about: str
    field: str = ""
    required: bool = False


def _table(
    keys: Mapping[str, _Key], make: Callable[..., Any], example: str, about: str = ""
) -> Kind:
    """The kind of a table with these keys, made into a record by `make`."""

    def read(value: Value) -> Any:
        found = value.table(example)
        for key in found:
            if key not in keys:
                raise _no_such_key(value, key, set(keys))
        for key, entry in keys.items():
            if entry.required and key not in found:
                raise value.error(f"lacks `{key}`; write it as in `{example}`")
        return make(**{keys[key].field or key: keys[key].kind.read(v) for key, v in found.items()})

    properties = {key: {**e.kind.schema, "description": e.about} for key, e in keys.items()}
    schema: dict[str, Any] = {
        "type": "object", "properties": properties, "additionalProperties": False,
    }  # fmt: skip
    if required := [key for key, entry in keys.items() if entry.required]:
        schema["required"] = required
    return Kind(read, {**schema, **({"description": about} if about else {})})


def _no_such_key(value: Value, key: str, known: set[str]) -> ConfigError:
    word = key.replace("-", "_").lower()
    if word in _FORBIDDEN:
        return value.unknown(key, known, _NO_WAY_AROUND)
    if word in _INSTEAD:
        return value.unknown(key, known, f"no such key; {_INSTEAD[word]}")
    if (other := _CALLED_ELSEWHERE.get(word)) in known:
        return value.unknown(key, known, f"no such key; here it is called `{other}`")
    return value.unknown(key, known)


_STEP = _table(
    {
        "name": _Key(NAME, "Name of the step; its log is named after it.", required=True),
        "command": _Key(COMMAND, "Shell command. Exit code 0 passes.", required=True),
        "env": _Key(ENV, "Variables of this step."),
        "cwd": _Key(RELATIVE, "Directory it runs in, relative to the one of agent.yaml."),
        "shell": _Key(SHELL, "`sh`, `bash`, or a list that the command is appended to."),
        "timeout": _Key(DURATION, "A step that takes longer fails.", "timeout_sec"),
        "network": _Key(
            choice("none", "packages", "full"),
            "What it may reach. Default: full for a step named install, none for others.",
        ),
        "allow_exit_codes": _Key(CODES, "Exit codes that pass besides 0."),
        "background": _Key(FLAG, "Processes it leaves behind live until the end of the run."),
        "artifacts": _Key(PATHS, "Globs of files that are kept in build/."),
        "junit": _Key(PATHS, "Globs of JUnit reports, besides those written to $JUNIT_DIR."),
    },
    StepSpec,
    "{name: test, command: npm test}",
)


def _read_steps(value: Value) -> tuple[StepSpec, ...]:
    steps = tuple(_STEP.read(item) for item in value.items("- {name: test, command: npm test}"))
    if not steps:
        raise value.error("is empty; a pipeline without a step would pass whatever is there")
    return steps


_STEPS = Kind(_read_steps, {"type": "array", "items": _STEP.schema, "minItems": 1})

_CACHE_TABLE = _table(
    {"key": _Key(ROOTED, "Files that the cache depends on, such as lock files.", required=True)},
    CacheSpec,
    "{key: [package-lock.json]}",
)


def _read_cache(value: Value) -> CacheSpec | None:
    if value.is_table:
        cache: CacheSpec = _CACHE_TABLE.read(value)
        if not cache.key:
            raise value.error("names no file in `key`; say which lock files the cache depends on")
        return cache
    if value.boolean():
        raise value.error("must say what it depends on, such as `{key: [package-lock.json]}`")
    return None


_CACHE = Kind(_read_cache, {"anyOf": [{"const": False}, _CACHE_TABLE.schema]})


class _Declared(PipelineSpec, frozen=True, forbid_unknown_fields=True):
    """A pipeline with the keys that hold for all of its steps together."""

    artifacts: tuple[str, ...] = ()
    junit: tuple[str, ...] = ()


_PIPELINE = _table(
    {
        "steps": _Key(_STEPS, "Run in order; the first that fails ends the run.", required=True),
        "timeout": _Key(DURATION, "Of all steps together. Default: 1h.", "timeout_sec"),
        "grace": _Key(DURATION, "Between SIGTERM and SIGKILL. Default: 5s.", "grace_sec"),
        "repo_write": _Key(
            choice("guard", "deny", "discard"),
            "guard: steps write into a view, and fail if they changed what git does not ignore; "
            "deny: the repository is read-only; discard: what they write is forgotten.",
        ),
        "image": _Key(IMAGE, "Image that the steps run in."),
        "protected_paths": _Key(
            ROOTED,
            "Must be as in the base commit. `:/path` is one of the whole repository, where "
            "agent.yaml lies in a directory of it.",
        ),
        "protected": _Key(choice("fail", "restore"), "What happens where they are not."),
        "secrets": _Key(NAMES, "Variables that steps get and whose values are masked."),
        "pass_env": _Key(NAMES, "Variables that steps get."),
        "env": _Key(ENV, "Variables of all steps."),
        "artifacts": _Key(
            PATHS, "Globs of files that are kept in build/, whichever step made them."
        ),
        "junit": _Key(PATHS, "Globs of JUnit reports, whichever step wrote them."),
        "writable": _Key(DIRECTORIES, "Directories that steps may write to under `deny`."),
        "cache": _Key(_CACHE, "A build cache between runs. Default: none."),
        "retention": _Key(
            _table(
                {
                    "runs": _Key(COUNT, "Runs that are kept. Default: 20."),
                    "max_bytes": _Key(SIZE, "Bytes of all of them. Default: 10GiB."),
                },
                Retention,
                "{runs: 20, max_bytes: 10GiB}",
            ),
            "Which old runs are kept.",
        ),
        "snapshot": _Key(
            choice("overlay", "copy"),
            "copy: a copy is verified, so that the repository may be worked on meanwhile.",
        ),
        "limits": _Key(
            _table(
                {
                    "memory": _Key(
                        MEBIBYTES,
                        "Memory of all processes. Default: four fifths of the machine's.",
                        "memory_mb",
                    ),
                    "disk": _Key(MEBIBYTES, "What may be written. Default: no limit.", "disk_mb"),
                    "cpus": _Key(CPUS, "CPU cores. Default: all."),
                    "pids": _Key(COUNT, "Processes and threads. Default: 1024."),
                },
                Limits,
                "{memory: 4GiB, pids: 1024}",
            ),
            "Resources of the sandbox.",
        ),
        "max_artifact_bytes": _Key(SIZE, "What a run may write. Default: 10GiB."),
    },
    _Declared,
    EXAMPLE.partition(": ")[2],
)


def read_pipeline(path: Path) -> PipelineSpec:
    """The pipeline that a file declares.

    Raises:
        ConfigError: not there, not readable, or wrong: names file, line, field and remedy.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"is not there; `ramify verify init` writes a first one, or write {EXAMPLE!r}",
            file=str(path),
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    return parse_pipeline(data, str(path))


def parse_pipeline(data: bytes, file: str = CONFIG_FILE) -> PipelineSpec:
    """The pipeline that the content of `file` declares. Raises: ConfigError."""
    root = Document(data, file).root()
    if root is None or not root.is_table:
        raise ConfigError(f"declares no pipeline; write {EXAMPLE!r}", file=file)
    top = root.table(EXAMPLE)
    for name in _OURS:  # a gate that is written down and does not hold is worse than none
        if name in top:
            raise top[name].error(f"has no meaning here; move it into `{TOP}`")
    section = top.get(TOP)
    if section is None:
        raise ConfigError(f"has no `{TOP}`; write {EXAMPLE!r}", file=file)
    declared: _Declared = _PIPELINE.read(section)
    if declared.protected == "restore" and not declared.protected_paths:
        raise section.table(EXAMPLE)["protected"].error(
            "says what happens to `protected_paths`, and there are none"
        )
    *before, last = declared.steps
    # What steps left is looked through at the end of the run, for the globs of all of them.
    last = msgspec.structs.replace(
        last,
        artifacts=(*last.artifacts, *declared.artifacts),
        junit=(*last.junit, *declared.junit),
    )
    fields: dict[str, Any] = {
        name: getattr(declared, name) for name in PipelineSpec.__struct_fields__
    }
    fields["steps"] = (*before, last)
    return PipelineSpec(**fields)


def agent_schema() -> dict[str, Any]:
    """The JSON Schema of `agent.yaml`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": CONFIG_FILE,
        "description": "Pipeline of `ramify verify`. Paths are relative to the directory that "
        "this file lies in. Other top-level keys are left alone.",
        "type": "object",
        "properties": {TOP: _PIPELINE.schema},
        "required": [TOP],
    }
