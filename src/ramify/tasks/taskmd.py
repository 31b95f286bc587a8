"""Read a BenchFlow package (`task.md`: YAML front matter and `## prompt`) into a Task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.tasks.texts import read_text
from ramify.tasks.yamltext import parse_yaml

_FRONT = re.compile(r"\A---[ \t]*\n(?P<front>.*?)^---[ \t]*\n(?P<body>.*)\Z", re.DOTALL | re.M)
_SCHEMA = re.compile(r"^(?:schema_version|version)[ \t]*:", re.MULTILINE)
_SECTION = re.compile(r"^## +(?P<name>prompt|role:[^\n]*|user-persona)[ \t]*$", re.MULTILINE)


def is_package_document(path: Path) -> bool:
    """Whether a file is there and is a package's `task.md`: its front matter names a schema."""
    if not path.is_file():
        return False
    match = _FRONT.match(path.read_bytes().decode(errors="replace").replace("\r\n", "\n"))
    return match is not None and _SCHEMA.search(match["front"]) is not None


def read_task_md(path: Path) -> tuple[dict[str, Any], str]:
    """The table of a `task.md` in the shape of task.toml, and the prompt.

    `sandbox` is task.toml's `environment`, its `image` the `docker_image`. `verifier.reward_range`
    becomes our own, as does `benchflow.environment.manifest`, the world; everything else is checked
    as in a task.toml.

    Raises:
        ConfigError: no front matter, no prompt, or a field that is wrong.
        UnsupportedError: roles, personas, or a verifier that is not a script.
    """
    file = str(path)
    match = _FRONT.match(read_text(path).replace("\r\n", "\n"))
    if match is None:
        raise ConfigError("has no front matter between two lines `---`", file=file)
    prompt = _prompt(match["body"], file)
    return _shaped(parse_yaml(match["front"], file), file), prompt


def _prompt(body: str, file: str) -> str:
    sections = list(_SECTION.finditer(body))
    found: dict[str, str] = {}
    for index, section in enumerate(sections):
        end = sections[index + 1].start() if index + 1 < len(sections) else len(body)
        found[section["name"].strip()] = body[section.end() : end].strip()
    for name in found:
        if name != "prompt":
            raise UnsupportedError(f"{file}: ## {name}: roles and personas are not supported yet")
    if not found.get("prompt"):
        raise ConfigError("has no text below `## prompt`", file=file)
    return found["prompt"] + "\n"


def _shaped(front: dict[str, Any], file: str) -> dict[str, Any]:
    table = dict(front)
    if "sandbox" in table:
        if "environment" in table:
            raise ConfigError("stands beside `sandbox`; keep one of them", file, "environment")
        table["environment"] = table.pop("sandbox")
    environment, verifier = _copy(table, "environment"), _copy(table, "verifier")
    if "image" in environment:
        environment.setdefault("docker_image", environment.pop("image"))
    kind = verifier.pop("type", "test-script")
    if kind != "test-script":
        raise UnsupportedError(f"{file}: verifier.type: {kind!r} is not supported; use test-script")
    given = {"reward_range": verifier.pop("reward_range", None), "world": _manifest(table, file)}
    native = {key: value for key, value in given.items() if value is not None}
    if native:
        table["ramify"] = native
        # A table [ramify] takes the verifier's network away unless it is asked for.
        inherited = environment.get("network_mode")
        closed = environment.get("allow_internet") is False
        verifier.setdefault("network_mode", inherited or ("no-network" if closed else "public"))
        if "allowed_hosts" in environment:
            verifier.setdefault("allowed_hosts", environment["allowed_hosts"])
    table.update(environment=environment, verifier=verifier)
    return table


def _manifest(table: dict[str, Any], file: str) -> Any:
    """Take `benchflow.environment.manifest` out of the table; nothing else may be beside it."""
    extension = _copy(table, "benchflow")
    environment = _copy(extension, "environment")
    manifest = environment.pop("manifest", None)
    if not environment:
        extension.pop("environment", None)
    for key in extension:
        raise UnsupportedError(f"{file}: benchflow.{key}: is not supported yet")
    if isinstance(table.get("benchflow"), dict):
        del table["benchflow"]
    return manifest


def _copy(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key)
    return dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}
