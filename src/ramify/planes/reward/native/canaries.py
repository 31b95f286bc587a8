"""Tests of ours among the task's: whoever changes the runner as a whole is seen by how they end."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ramify.contracts.reports import CaseStatus

_MOST_BETWEEN = 4
_WORDS = re.compile(r"[a-z]{2,}")
_SPARE = ("result", "value", "input", "output", "empty", "order", "format", "default", "edge")

# How a test ends and what its body is; the numbers are drawn for each.
_Body = tuple[CaseStatus, str]
_CASE_BODIES: tuple[_Body, ...] = (
    ("failed", "self.assertEqual({a}, {b})"),
    ("failed", "self.assertTrue({a} == {b})"),
    ("failed", "self.assertIn({a}, [{b}])"),
    ("failed", "assert {a} == {b}"),
    ("failed", "self.fail('{a}')"),
    ("passed", "self.assertEqual({a}, {a})"),
    ("skipped", "self.skipTest('{a}')"),
)
_FUNCTION_BODIES: tuple[_Body, ...] = (
    ("failed", "assert {a} == {b}"),
    ("failed", "assert {a} in [{b}]"),
    ("failed", "raise ValueError({a})"),
    ("failed", "pytest.fail('{a}')"),
    ("passed", "assert {a} == {a}"),
    ("skipped", "pytest.skip('{a}')"),
)


class Canaries(NamedTuple):
    """Files to lay among the tests, by name, and how each test in them must end, by id.

    `order` is that of all files of tests: some of ours among the others, and one after the last,
    which sees what any of them changed.
    """

    files: Mapping[str, str]
    cases: Mapping[str, CaseStatus]
    order: Sequence[str]


def make_canaries(
    runner: str, expected: Sequence[str], files: Sequence[str], taken: Collection[str]
) -> Canaries:
    """Canaries under names like those of the tests themselves; other ones each time.

    Args:
        runner: `pytest` or `unittest`.
        expected: ids of the task's tests.
        files: the task's files of tests, in order.
        taken: all names that are there already.
    """
    rng = random.SystemRandom()
    words = sorted({w for name in expected for w in _WORDS.findall(name)} - {"test", "tests", "py"})
    names = _Names(rng, [*words, *_SPARE])
    made: dict[str, str] = {}
    cases: dict[str, CaseStatus] = {}
    places = sorted(rng.sample(range(len(files)), min(len(files), _MOST_BETWEEN)))
    order = list(files)
    for place in (len(files), *reversed(places)):
        name = _free_name(names, {*taken, *made})
        made[name] = _file(runner, name, rng, names, cases)
        order.insert(place, name)
    return Canaries(made, cases, order)


def _free_name(names: _Names, taken: Collection[str]) -> str:
    while (name := f"test_{names.draw()}.py") in taken:
        continue
    return name


def _file(
    runner: str, file: str, rng: random.Random, names: _Names, cases: dict[str, CaseStatus]
) -> str:
    """The text of one file; how its tests must end is added to `cases`."""
    kind = "Test" + names.draw().title().replace("_", "")
    lines = ["import unittest", "", f"class {kind}(unittest.TestCase):"]
    for status, body in rng.sample(_CASE_BODIES, len(_CASE_BODIES)):
        name = f"test_{names.draw()}"
        cases[f"{file}::{kind}::{name}"] = status
        lines += [f"    def {name}(self):", f"        {_filled(rng, body)}", ""]
    if runner == "pytest":
        lines.insert(0, "import pytest")
        for status, body in rng.sample(_FUNCTION_BODIES, len(_FUNCTION_BODIES)):
            name = f"test_{names.draw()}"
            cases[f"{file}::{name}"] = status
            lines += [f"def {name}():", f"    {_filled(rng, body)}", ""]
    return "\n".join(lines)


class _Names:
    """Draws names that no other of this run has."""

    def __init__(self, rng: random.Random, words: Sequence[str]) -> None:
        self._rng, self._words = rng, list(dict.fromkeys(words))
        self._drawn: set[str] = set()

    def draw(self) -> str:
        while True:
            name = "_".join(self._rng.sample(self._words, self._rng.choice((2, 3, 3))))
            if name not in self._drawn:
                self._drawn.add(name)
                return name


def _filled(rng: random.Random, body: str) -> str:
    a = rng.randrange(2, 1000)
    return body.format(a=a, b=a + rng.randrange(1, 1000))
