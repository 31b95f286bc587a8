"""Argument injection: a user's function says by name or type what it wants, and gets just that.

Resolved once, when the function is registered: a required argument that nobody can supply is
refused there, not in the middle of a run. Used by rewards and callbacks alike.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ramify.contracts.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments resolved.

    Attributes:
        func: the user's function.
        keywords: parameter name → name of the value that fills it.
        everything: it takes `**kwargs`, so it is given all values.
        positional: how many leading positional arguments the caller supplies itself.
        optional: parameters with a default, which a value that is not there leaves alone.
    """

    func: Callable[..., Any]
    keywords: Mapping[str, str]
    everything: bool
    positional: int
    optional: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The function's name, for metrics and messages."""
        return getattr(self.func, "__name__", type(self.func).__name__)

    @property
    def is_async(self) -> bool:
        """Calling it only makes a coroutine, so it needs no thread."""
        return _is_async(self.func)

    def bind(self, values: Mapping[str, Any], *leading: Any) -> Callable[[], Any]:
        """The function with its arguments, ready to be called. Raises KeyError: a value lacks."""
        arguments = {
            parameter: values[name]
            for parameter, name in self.keywords.items()
            if name in values or parameter not in self.optional
        }
        if self.everything:
            arguments |= {k: v for k, v in values.items() if k not in self.keywords}
        return partial(self.func, *leading, **arguments)

    async def __call__(self, values: Mapping[str, Any], *leading: Any) -> Any:
        """Call with `leading` positional arguments and the injected `values`.

        A synchronous function runs in a worker thread. Whatever awaitable comes back is awaited,
        so a callable object or a lambda that returns a coroutine is not mistaken for a result.
        """
        call = self.bind(values, *leading)
        result = call() if self.is_async else await asyncio.to_thread(call)
        return await result if inspect.isawaitable(result) else result


def resolve(
    func: Callable[..., Any],
    names: Collection[str],
    types: Mapping[type, str] | None = None,
    positional: int = 0,
    objects: Mapping[str, object] | None = None,
) -> Call:
    """Resolve a function's parameters against the values that will be available.

    Args:
        func: a plain function, coroutine function, method or callable object.
        names: names of available values; a parameter of that name gets it.
        types: type → name; a parameter annotated with that type (or a subclass) gets it.
        positional: leading positional parameters that the caller fills itself.
        objects: name → object, some of the values; a parameter annotated with a class (not a
            builtin one) of which exactly one of them is an instance gets it.

    Raises:
        ConfigError: not callable, or a required parameter matches nothing.
    """
    if not callable(func):
        raise ConfigError(f"{func!r} is not callable")
    label = getattr(func, "__qualname__", type(func).__name__)
    signature = inspect.signature(func)
    hints = _hints(func)
    keywords: dict[str, str] = {}
    optional: set[str] = set()
    everything = False
    for index, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is parameter.VAR_KEYWORD:
            everything = True
            continue
        if index < positional or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.default is not parameter.empty:
            optional.add(parameter.name)
        hint = hints.get(parameter.name)
        source = _source(parameter.name, hint, names, types or {}) or _of_class(hint, objects or {})
        if source is not None and parameter.kind is not parameter.POSITIONAL_ONLY:
            keywords[parameter.name] = source
        elif parameter.default is parameter.empty:
            raise ConfigError(
                f"{label}() asks for {parameter.name!r}, which nobody supplies; available: "
                f"{', '.join(sorted(names))}"
            )
    return Call(func, keywords, everything, positional, frozenset(optional))


def _source(name: str, hint: Any, names: Collection[str], types: Mapping[type, str]) -> str | None:
    if name in names:
        return name
    for wanted, source in types.items():
        if hint is wanted or (isinstance(hint, type) and _derives(hint, wanted)):
            return source
    return None


def _derives(hint: type, wanted: type) -> bool:
    # A Protocol that is not runtime-checkable refuses issubclass(); it stands for itself alone.
    return not getattr(wanted, "_is_protocol", False) and issubclass(hint, wanted)


def _of_class(hint: Any, objects: Mapping[str, object]) -> str | None:
    if not isinstance(hint, type) or hint.__module__ == "builtins":
        return None
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return None
    found = [name for name, value in objects.items() if isinstance(value, hint)]
    return found[0] if len(found) == 1 else None


def _hints(func: Callable[..., Any]) -> dict[str, Any]:
    target = func if inspect.isroutine(func) else type(func).__call__
    try:
        return typing.get_type_hints(target)
    except (NameError, TypeError, AttributeError):
        # Annotations that name something importable only for type checkers: match by name alone.
        return {}


def _is_async(func: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(func):
        return True
    return inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004
