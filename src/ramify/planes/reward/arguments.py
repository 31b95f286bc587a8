"""What a reward function may ask for, and how that is made from a node and its context."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError
from ramify.contracts.messages import Message
from ramify.contracts.task import Task
from ramify.contracts.tree import RolloutNode

ONE = ("prompt", "completion", "answer", "info", "state", "task", "node", "path", "ctx")
"""Names that a function of one node may ask for, beside `parser`, columns and objects."""

MANY = ("prompts", "completions", "answers", "infos", "states", "tasks", "nodes", "paths")
"""Names that make a function one over siblings: a list each, with one entry per sibling."""

SHARED = ("answer", "info", "task")
"""Names that a group function may ask for as well: siblings are of the same task."""

ONE_TYPES: Mapping[type, str] = {Task: "task", Context: "ctx", RolloutNode: "node"}
SHARED_TYPES: Mapping[type, str] = {Task: "task"}

_SINGULAR = dict(zip(MANY, ("prompt", "completion", "answer", "info", "state", "task", "node",
                            "path"), strict=True))  # fmt: skip


class Scene:
    """A node and its context, as reward functions see them."""

    def __init__(self, node: RolloutNode, ctx: Context) -> None:
        self.node, self.ctx = node, ctx

    @cached_property
    def _split(self) -> tuple[list[Message], list[Message]]:
        opening = list(self.node.path[0].messages)
        return opening, list(self.node.messages)[len(opening) :]

    def value(self, name: str) -> Any:
        """One of `ONE`. Lists and tables are copies: a function may do with them as it likes."""
        return _MAKE[name](self)

    def columns(self, names: Iterable[str]) -> dict[str, Any]:
        """Those of the task's columns that it has."""
        facts = self.ctx.task.metadata
        return {name: facts[name] for name in names if name in facts}


_MAKE: Mapping[str, Callable[[Scene], Any]] = {
    "prompt": lambda scene: list(scene._split[0]),  # pyright: ignore[reportPrivateUsage] (same file)
    "completion": lambda scene: list(scene._split[1]),  # pyright: ignore[reportPrivateUsage]
    "answer": lambda scene: scene.ctx.task.target,
    "info": lambda scene: dict(scene.ctx.task.metadata),
    "state": lambda scene: scene.node.state,
    "task": lambda scene: scene.ctx.task,
    "node": lambda scene: scene.node,
    "path": lambda scene: list(scene.node.path),
    "ctx": lambda scene: scene.ctx,
}


def check_names(columns: Collection[str], objects: Collection[str]) -> None:
    """Names that a user gives to columns and objects. Raises ConfigError: taken, or no name."""
    taken = {*ONE, *MANY, "parser"}
    for kind, names in (("column", columns), ("object", objects)):
        for name in names:
            if not name.isidentifier():
                raise ConfigError(f"{name!r} cannot be an argument's name", field=f"{kind}s")
            if name in taken:
                raise ConfigError(
                    f"{name!r} already names something that every function may ask for, or stands "
                    f"there twice; give the {kind} another name",
                    field=f"{kind}s",
                )
            taken.add(name)


def values_of_one(
    scene: Scene, wanted: Iterable[str], columns: Collection[str], fixed: Mapping[str, object]
) -> dict[str, Any]:
    """Values by name, for a function of one node."""
    made = {name: scene.value(name) for name in wanted if name in _MAKE}
    return {**fixed, **scene.columns(columns), **made}


def values_of_many(
    scenes: Sequence[Scene],
    wanted: Iterable[str],
    columns: Collection[str],
    fixed: Mapping[str, object],
) -> dict[str, Any]:
    """Values by name, for a function over siblings; a column is a list with an entry for each."""
    made: dict[str, Any] = {}
    for name in wanted:
        if name in _SINGULAR:
            made[name] = [scene.value(_SINGULAR[name]) for scene in scenes]
        elif name in SHARED:
            made[name] = scenes[0].value(name)
    rows = [scene.columns(columns) for scene in scenes]
    lists = {name: [row[name] for row in rows] for name in columns if all(name in r for r in rows)}
    return {**fixed, **lists, **made}
