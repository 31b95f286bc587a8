"""A reward that a user wrote, by where it is: a file or a module, and a name in it."""

from __future__ import annotations

import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ramify.contracts.errors import ConfigError, UsageError
from ramify.contracts.model import Model
from ramify.contracts.reward import Reward
from ramify.planes.reward.function import FunctionReward
from ramify.planes.reward.metered import metered

_JUDGE = "judge_model"


def load_rubric(place: str, judge_model: Model | None = None) -> Reward:
    """The reward at `file.py:name` or `package.module:name`.

    What has a method `score` is taken as it is. A function without parameters, or with the one
    parameter `judge_model`, is called and makes the reward; any other function is one itself.
    Each call loads a file anew.

    Raises:
        ConfigError: no such file, module or name, or its code fails.
        UsageError: it asks for `judge_model` and there is none.
    """
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise ConfigError(f"{place!r} is no rubric; write file.py:name or package.module:name")
    module = _file(Path(where)) if where.endswith(".py") else _module(where)
    if not hasattr(module, name):
        raise ConfigError(f"there is no {name!r} in it", file=where)
    return _as_reward(getattr(module, name), place, judge_model)


def _as_reward(found: object, place: str, judge_model: Model | None) -> Reward:
    if not inspect.isclass(found) and hasattr(found, "score"):
        return cast("Reward", found)
    if not callable(found):
        raise ConfigError(f"is {_a(found)}, not a reward", file=place)
    parameters = set(inspect.signature(found).parameters)
    if not parameters <= {_JUDGE}:
        return FunctionReward(found)
    made: object = _make(found, place, parameters, judge_model)
    if hasattr(made, "score"):
        return cast("Reward", made)
    if not callable(made):
        raise ConfigError(f"makes {_a(made)}, not a reward", file=place)
    return FunctionReward(made)


def _a(value: object) -> str:
    """The name of its kind, with the article: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _make(
    factory: Callable[..., Any], place: str, parameters: set[str], judge_model: Model | None
) -> object:
    if _JUDGE not in parameters:
        return factory()
    if judge_model is None:
        raise UsageError(f"{place} asks a judge; give its model with --judge-model provider/name")
    return factory(metered(judge_model))


def _file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise ConfigError("there is no such file", file=str(path))
    # A name of its own: two files called rubric.py are two modules.
    name = f"ramify_rubric_{hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("is no Python file", file=str(path))
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there while it is made
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's code does when it is imported
        del sys.modules[name]
        raise ConfigError(_why(error, path), file=str(path)) from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise ConfigError(f"cannot be imported: {_why(error, None)}", file=name) from error


def _why(error: Exception, path: Path | None) -> str:
    said = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if path is not None and frame.filename == str(path)]
    return f"line {lines[-1]}: {said}" if lines else said
