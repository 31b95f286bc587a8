"""Tasks whose tests our own runner runs, in a real sandbox."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from verifier_stand import Room, rollout, shell

from ramify.contracts.reward import VerifyResult
from ramify.contracts.task import (
    IsolationLevel,
    SolutionSettings,
    TaskPackage,
    TestGrading,
    VerifierSettings,
)

IN_PROCESS = """
import importlib.util, os, sys, unittest
sys.path.append(os.getcwd())

class TestMedian(unittest.TestCase):
    def test_odd(self):
        from stats import median
        self.assertEqual(median([3, 1, 2]), 2)

    def test_even(self):
        from stats import median
        self.assertEqual(median([4, 1, 2, 3]), 2.5)
"""
ISOLATED = """
import unittest
from ramify_tests import isolated_call

class TestMedian(unittest.TestCase):
    def test_odd(self):
        self.assertEqual(isolated_call("stats.py", "median", [3, 1, 2]), 2)

    def test_even(self):
        self.assertEqual(isolated_call("stats.py", "median", [4, 1, 2, 3]), 2.5)
"""
RIGHT = """
def median(values):
    values = sorted(values)
    half, odd = divmod(len(values), 2)
    return values[half] if odd else (values[half - 1] + values[half]) / 2
"""


def hard_package(
    root: Path, room: Room, tests: Mapping[str, str], grading: TestGrading
) -> TaskPackage:
    """A task directory with these test files."""
    for name, text in tests.items():
        (root / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tests" / name).write_text(textwrap.dedent(text))
    return TaskPackage(
        str(root),
        "digest",
        room.spec,
        VerifierSettings(timeout_sec=30.0, grading=grading),
        SolutionSettings(),
        outputs=("stats.py",),
    )


async def graded(
    room: Room,
    tmp_path: Path,
    solution: str | Mapping[str, str],
    tests: str | Mapping[str, str] = ISOLATED,
    *,
    level: IsolationLevel = IsolationLevel.OUTPUTS,
    grading: TestGrading | None = None,
    script: str = "",
) -> VerifyResult:
    """What a solution (the text of stats.py, or files by name) is worth."""
    files = {"test_stats.py": tests} if isinstance(tests, str) else tests
    package = hard_package(
        tmp_path / "task", room, files, grading or TestGrading(runner="unittest")
    )
    left = {"stats.py": solution} if isinstance(solution, str) else solution
    lines = [f"mkdir -p $(dirname {n}); cat > {n} <<'END_OF'\n{t}\nEND_OF" for n, t in left.items()]
    return await rollout(room, tmp_path, level, shell("\n".join([*lines, script, "true"])), package)
