"""The tasks under attack: as a harness often has them, and as Ramify runs them."""

from __future__ import annotations

import textwrap
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import undefended
from attack_cases import INVALID, SCORED_LOW, Attack
from attack_ground import Ground

from ramify.contracts.context import Context
from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.task import (
    IsolationLevel,
    ScriptProfile,
    SolutionSettings,
    TaskPackage,
    TestGrading,
    VerifierSettings,
)

OUTPUTS, WORKDIR = IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR
FILESYSTEM, LIVE = IsolationLevel.FILESYSTEM, IsolationLevel.LIVE

ANSWER_SH = """\
#!/bin/bash
# Grades answer.sh by what it prints.
if [ ! -e answer.sh ]; then echo 0 > /logs/verifier/reward.txt; exit 1; fi
said=$(sh ./answer.sh 2>&1)
if [ "$said" = 42 ]; then reward=1; else reward=0; fi
if [ -e /tests/helpers.sh ]; then . /tests/helpers.sh; fi
echo $reward > /logs/verifier/reward.txt
"""
REPORT_SH = """\
if [ -e answer.sh ]; then sh ./answer.sh > /logs/verifier/junit.xml; exit; fi
echo '<testsuite><testcase name="none"><failure/></testcase></testsuite>' > /logs/verifier/junit.xml
"""
PLAIN_UNITTEST = """
import os, sys, unittest
sys.path.append(os.getcwd())
from stats import median

class TestMedian(unittest.TestCase):
    def test_odd(self):
        self.assertEqual(median([3, 1, 2]), 2)

    def test_even(self):
        self.assertEqual(median([4, 1, 2, 3]), 2.5)
"""
ISOLATED_UNITTEST = """
import unittest
from ramify_tests import isolated_call

class TestMedian(unittest.TestCase):
    def test_odd(self):
        self.assertEqual(isolated_call("stats.py", "median", [3, 1, 2]), 2)

    def test_even(self):
        self.assertEqual(isolated_call("stats.py", "median", [4, 1, 2, 3]), 2.5)
"""
SHUFFLED_UNITTEST = """
import random, unittest
from ramify_tests import isolated_call

class TestMedian(unittest.TestCase):
    def test_median(self):
        known = [([3, 1, 2], 2), ([4, 1, 2, 3], 2.5), ([9], 9)] * 2
        for values, middle in random.SystemRandom().sample(known, len(known)):
            self.assertEqual(isolated_call("stats.py", "median", values), middle)
"""
PLAIN_PYTEST = """
import os, sys
sys.path.append(os.getcwd())
from stats import median

def test_odd():
    assert median([3, 1, 2]) == 2

def test_even():
    assert median([4, 1, 2, 3]) == 2.5
"""
ISOLATED_PYTEST = """
from ramify_tests import isolated_call

def test_odd():
    assert isolated_call("stats.py", "median", [3, 1, 2]) == 2

def test_even():
    assert isolated_call("stats.py", "median", [4, 1, 2, 3]) == 2.5
"""
RIGHT = """cat > stats.py <<'END'
def median(values):
    values = sorted(values)
    half, odd = divmod(len(values), 2)
    return values[half] if odd else (values[half - 1] + values[half]) / 2
END
"""
HONEST_REPORT = """cat > answer.sh <<'END'
echo '<testsuite tests="2"><testcase classname="t" name="a"/>'
echo '<testcase classname="t" name="b"/></testsuite>'
END
"""
REPORT_IDS = ("t::a", "t::b")


@dataclass(frozen=True)
class Kind:
    """A kind of task: `plain` tests are those of an undefended harness, run by `command`."""

    name: str
    output: str
    plain: Mapping[str, str]
    ours: Mapping[str, str]
    honest: str
    command: str
    grading: TestGrading | None = None
    reads_file: bool = False

    def package(self, ground: Ground, *, ours: bool = True) -> TaskPackage:
        """The task's directory, with the tests of one side."""
        root = ground.place / f"{self.name}-{'ours' if ours else 'plain'}"
        for name, text in (self.ours if ours else self.plain).items():
            path = root / "tests" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return TaskPackage(
            str(root),
            self.name,
            ground.field.spec,
            VerifierSettings(timeout_sec=20.0, grading=self.grading),
            SolutionSettings(),
            outputs=(self.output,),
        )


_UNITTEST, _PYTEST = TestGrading(runner="unittest"), TestGrading(runner="pytest")
_RUN_UNITTEST = "python3 -m unittest discover -s tests"
_RUN_PYTEST = "python3 -m pytest -q tests/test_stats.py"
ANSWER = Kind(
    "answer",
    "answer.sh",
    {"test.sh": ANSWER_SH},
    {"test.sh": ANSWER_SH},
    "echo 'echo 42' > answer.sh",
    "bash /tests/test.sh",
    reads_file=True,
)
REPORT = Kind(
    "report",
    "answer.sh",
    {"test.sh": REPORT_SH},
    {"test.sh": REPORT_SH},
    HONEST_REPORT,
    "bash /tests/test.sh",
    TestGrading(report="junit", report_path="junit.xml", expected=REPORT_IDS),
)


def _python(name: str, plain: str, ours: str, grading: TestGrading, command: str) -> Kind:
    tests = ({"test_stats.py": plain}, {"test_stats.py": ours})
    return Kind(name, "stats.py", *tests, RIGHT, command, grading)


IN_PROCESS = _python("in-process", PLAIN_UNITTEST, PLAIN_UNITTEST, _UNITTEST, _RUN_UNITTEST)
ISOLATED = _python("isolated", PLAIN_UNITTEST, ISOLATED_UNITTEST, _UNITTEST, _RUN_UNITTEST)
SHUFFLED = _python("shuffled", PLAIN_UNITTEST, SHUFFLED_UNITTEST, _UNITTEST, _RUN_UNITTEST)
PY_IN_PROCESS = _python("pytest-in-process", PLAIN_PYTEST, PLAIN_PYTEST, _PYTEST, _RUN_PYTEST)
PY_ISOLATED = _python("pytest-isolated", PLAIN_PYTEST, ISOLATED_PYTEST, _PYTEST, _RUN_PYTEST)

Pays = Callable[[Context, Ground], Awaitable[bool]]


def on_task(
    id: str,
    shows: str,
    kind: Kind,
    script: str,
    *expected: str,
    level: IsolationLevel = OUTPUTS,
    pays: Pays | None = None,
    tries: int = 1,
    profile: ScriptProfile | None = None,
) -> Attack:
    """An attack on the reward of a task. `script` is what the agent does, as root in /app.

    Where nobody defends, it pays a reward, or what `pays` says; one that races with the tests has
    a few `tries`.
    """

    async def once(ground: Ground) -> bool:
        async with ground.occupied(kind.package(ground, ours=False), "undefended") as ctx:
            await ground.act(ctx, script)
            if pays is not None:
                return await pays(ctx, ground)
            return not await _believed(ctx, ground, kind) < 1.0  # NaN is no less than 1

    async def naive(ground: Ground) -> bool:
        for _ in range(tries):
            if await once(ground):
                return True
        return False

    async def ramify(ground: Ground) -> tuple[str, object]:
        async with ground.occupied(kind.package(ground), "attack") as ctx:
            await ground.act(ctx, script)
            try:
                verifier = ground.field.verifier(level, profile)
                result = await verifier.score(None, ctx)  # type: ignore[arg-type]
            except InvalidRewardError as error:
                return INVALID, (error, ctx.observer.events)  # type: ignore[attr-defined]
        assert result.reward is not None
        became = SCORED_LOW if result.reward < 1.0 else "paid"
        return became, (result, ctx.observer.events)  # type: ignore[attr-defined]

    async def honest(ground: Ground) -> float | None:
        return await honest_reward(kind, level, ground, profile)

    return Attack(id, shows, expected, naive, ramify, honest)


async def honest_reward(
    kind: Kind, level: IsolationLevel, ground: Ground, profile: ScriptProfile | None = None
) -> float | None:
    """What an honest solution scores; run once for all attacks on the task at the level."""
    known = ground.field.honest
    if (kind.name, level, profile) not in known:
        async with ground.occupied(kind.package(ground), "honest") as ctx:
            await ground.act(ctx, kind.honest)
            verifier = ground.field.verifier(level, profile)
            result = await verifier.score(None, ctx)  # type: ignore[arg-type]
        known[kind.name, level, profile] = result.reward
    return known[kind.name, level, profile]


async def _believed(ctx: Context, ground: Ground, kind: Kind) -> float:
    """The reward that an undefended harness gives."""
    assert ctx.sandbox is not None
    tests = Path(kind.package(ground, ours=False).path) / "tests"
    code = await undefended.run_tests(ctx.sandbox, tests, kind.command)
    if kind.reads_file:
        return await undefended.read_reward(ctx.sandbox)
    if kind.grading is not None and kind.grading.report is not None:
        return await undefended.read_report(ctx.sandbox)
    return float(code == 0)
