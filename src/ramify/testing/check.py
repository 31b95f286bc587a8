"""What a conformance suite is made of: named checks, and how one fails or is skipped.

A suite is a tuple of `Check`s. Nothing here needs a test framework; with pytest it reads

    @pytest.mark.parametrize("check", SANDBOX_CHECKS, ids=lambda check: check.name)
    async def test_my_provider(check, bench):
        await check.run(bench)
"""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar


class ConformanceError(AssertionError):
    """A provider breaks its contract. Says what was expected and what was found."""


class CheckSkipped(unittest.SkipTest):
    """A check does not apply: what it needs is not offered. pytest and unittest report a skip."""


class Bench(Protocol):
    """What is under test, and what it offers."""

    async def missing(self, need: str) -> str | None:
        """Why `need` is not offered, or None if it is. Raises ValueError for an unknown need."""
        ...


B = TypeVar("B", bound=Bench)


@dataclass(frozen=True, slots=True)
class Check(Generic[B]):
    """One sentence of a contract, checked.

    Attributes:
        name: unique within its suite.
        sentence: the sentence of the contract that is checked.
        needs: what must be offered for it to apply; otherwise it is skipped.
        body: the check itself.
        timeout_sec: a check that takes longer has failed: a contract is kept in time or not.
    """

    name: str
    sentence: str
    needs: tuple[str, ...]
    body: Callable[[B], Awaitable[None]]
    timeout_sec: float = 30.0

    async def run(self, bench: B) -> None:
        """Run it. Raises ConformanceError (broken) or CheckSkipped (does not apply)."""
        for need in self.needs:
            if why := await bench.missing(need):
                raise CheckSkipped(f"{self.name}: {why}")
        deadline = asyncio.timeout(self.timeout_sec)
        try:
            async with deadline:
                await self.body(bench)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise ConformanceError(
                f"{self.name} did not finish within {self.timeout_sec:g} s ({self.sentence})"
            ) from error

    def renamed(self, name: str) -> Check[B]:
        """The same check under another name."""
        return replace(self, name=name)


def check(
    *needs: str, timeout_sec: float = 30.0
) -> Callable[[Callable[[B], Awaitable[None]]], Check[B]]:
    """Turn an async function into a Check: its name and docstring become name and sentence."""

    def wrap(body: Callable[[B], Awaitable[None]]) -> Check[B]:
        name = getattr(body, "__name__", "check").lstrip("_")
        return Check(name, " ".join((body.__doc__ or "").split()), needs, body, timeout_sec)

    return wrap


def require(condition: bool, message: str) -> None:
    """Raise ConformanceError with `message` unless `condition`. Unlike `assert`, `-O` keeps it."""
    if not condition:
        raise ConformanceError(message)


def equal(found: object, expected: object, what: str) -> None:
    """Raise ConformanceError unless `found == expected`, showing both in short form."""
    if found != expected:
        raise ConformanceError(f"{what}: expected {_short(expected)}, found {_short(found)}")


@contextmanager
def raises(*kinds: type[Exception], doing: str) -> Generator[None]:
    """Raise ConformanceError unless the body raises one of `kinds`."""
    names = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield
    except kinds:
        return
    except Exception as error:
        raise ConformanceError(f"{doing} must raise {names}, it raised {error!r}") from error
    raise ConformanceError(f"{doing} must raise {names}, it raised nothing")


@contextmanager
def within(seconds: float, doing: str) -> Generator[None]:
    """Raise ConformanceError if the body takes longer than `seconds` (it is not interrupted)."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    yield
    if (took := loop.time() - start) > seconds:
        raise ConformanceError(f"{doing} took {took:.2f} s; at most {seconds:g} s are allowed")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]} ({len(text)} characters)"
