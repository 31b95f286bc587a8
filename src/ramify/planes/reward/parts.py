"""One function of a rubric: how it is named, weighed and called, resolved once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ramify.contracts.calls import Call, resolve
from ramify.contracts.errors import ConfigError
from ramify.contracts.reward import Granularity, Reward, RubricEntry, Space
from ramify.planes.reward.arguments import (
    MANY,
    ONE,
    ONE_TYPES,
    SHARED,
    SHARED_TYPES,
    Scene,
    values_of_many,
    values_of_one,
)


@dataclass(frozen=True, slots=True)
class Supplies:
    """What a rubric supplies to its functions beside what a node gives.

    Attributes:
        columns: names of task columns.
        fixed: objects by name, the parser among them.
    """

    columns: tuple[str, ...]
    fixed: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a rubric; `own` is what it calls itself."""

    entry: RubricEntry
    call: Call
    timeout_sec: float
    supplies: Supplies
    own: str

    @property
    def name(self) -> str:
        """Its namespaced name."""
        return self.entry.name

    @property
    def compares(self) -> bool:
        """It is a function over siblings."""
        return self.entry.kind == "group"

    def bind(self, scenes: Sequence[Scene]) -> Callable[[], Any]:
        """The function with its arguments, for one scene, or for all siblings.

        Raises: LookupError (the task lacks a column that it asks for).
        """
        wanted = {*self.call.keywords.values()}
        if self.call.everything:
            wanted.update((*MANY, *SHARED) if self.compares else ONE)
        more = (self.supplies.columns, self.supplies.fixed)
        if self.compares:
            values = values_of_many(scenes, wanted, *more)
        else:
            values = values_of_one(scenes[0], wanted, *more)
        try:
            return self.call.bind(values)
        except KeyError as error:
            task_id = scenes[0].ctx.task.task_id
            raise LookupError(f"the task {task_id} has no column {error}") from error


def make_part(
    func: Callable[..., Any] | Reward,
    supplies: Supplies,
    *,
    name: str,
    weight: float,
    space: Space,
    granularity: Granularity,
    group: bool,
    timeout_sec: float,
) -> Part:
    """Resolve a function, or the `score` of a Reward.

    Raises: ConfigError (it asks for something that nobody supplies, or a number is out of range).
    """
    function = _callable(func)
    if not math.isfinite(weight):
        raise ConfigError(f"the weight of {name} is {weight}; it must be finite", field="weights")
    if not timeout_sec > 0:
        raise ConfigError(f"the timeout of {name} is {timeout_sec}; it must be above 0")
    group = group or bool(_parameters(function).intersection(MANY))
    names, types = ((*MANY, *SHARED), SHARED_TYPES) if group else (ONE, ONE_TYPES)
    try:
        call = resolve(
            function,
            {*names, *supplies.columns, *supplies.fixed},
            types,
            objects=supplies.fixed,
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error.message}. Declare a column of the task with columns=(...), or give an object "
            "with objects={...}"
        ) from error
    entry = RubricEntry(
        name=name,
        weight=float(weight),
        space=space,
        granularity=granularity,
        kind="group" if group else "function",
        source=_source(func),
        arguments=tuple(sorted({*call.keywords.values()})),
    )
    return Part(entry, call, timeout_sec, supplies, short_name(func))


def short_name(func: Callable[..., Any] | Reward) -> str:
    """What a function is called where nobody says otherwise."""
    given = getattr(func, "__name__", None) or getattr(func, "name", None)
    return given if isinstance(given, str) and given else type(func).__name__


def check_unique(names: Collection[str]) -> None:
    """Raises ConfigError: two functions have the same name, or one has that of another's part."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ConfigError(
                f"two functions of the rubric are called {name!r}; give one of them another name "
                "with add(..., name=...), or its rubric one with Rubric(..., name=...)",
                field="funcs",
            )
        seen.add(name)
    for name in seen:
        # Its signals are called after it, and would be taken for the other's.
        parts = name.split(".")
        for above in (".".join(parts[:size]) for size in range(1, len(parts))):
            if above in seen:
                raise ConfigError(
                    f"{name!r} would be a part of the function {above!r} of the same rubric; give "
                    "one of them another name",
                    field="funcs",
                )


def _callable(func: Callable[..., Any] | Reward) -> Callable[..., Any]:
    if inspect.isclass(func):
        raise ConfigError(
            f"{func.__name__} is a class; give an object of it: {func.__name__}(...)", field="funcs"
        )
    if callable(func):
        return func
    score = getattr(func, "score", None)
    if not callable(score):
        raise ConfigError(f"{func!r} is neither a function nor a Reward", field="funcs")
    return score


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except ValueError as error:
        raise ConfigError(f"{function!r} does not say what arguments it takes") from error


def _source(func: Any) -> str:
    if hasattr(func, "__qualname__"):
        return f"{func.__module__}:{func.__qualname__}"
    return f"{type(func).__module__}:{type(func).__qualname__}"
