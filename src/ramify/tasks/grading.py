"""How single tests are graded, out of the table `[ramify.tests]`."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from ramify.contracts.task import TestGrading
from ramify.tasks.fields import Fields
from ramify.tasks.schema import TestsTable

_REPORT_PATHS: Mapping[str, str] = {"junit": "junit.xml", "ctrf": "ctrf.json", "tap": "report.tap"}
_WHERE = "ramify.tests"


def test_grading(fields: Fields, table: TestsTable | None, *, steps: bool) -> TestGrading | None:
    """The grading that a table asks for; None without one.

    Args:
        fields: names the file in errors.
        table: what the task says.
        steps: whether the task has several steps, each with tests of its own.

    Raises:
        ConfigError: neither runner nor report, both, or fields that do not go together.
    """
    if table is None:
        return None
    if (table.runner is None) == (table.report is None):
        raise fields.error(
            _WHERE,
            'needs either runner = "pytest" or "unittest" (ours runs the tests), or report '
            '= "junit", "ctrf" or "tap" (test.sh leaves one)',
        )
    if table.python is not None and table.runner is None:
        raise fields.error(f"{_WHERE}.python", "has no meaning without `runner`")
    if table.report_path is not None and table.report is None:
        raise fields.error(f"{_WHERE}.report_path", "has no meaning without `report`")
    if table.expected and steps:
        raise fields.error(
            f"{_WHERE}.expected",
            "cannot be told apart by step; leave it out, and the tests of each step are expected",
        )
    if len({*table.expected}) != len(table.expected):
        raise fields.error(f"{_WHERE}.expected", "names a test twice")
    return TestGrading(
        runner=table.runner,
        python=fields.absolute(f"{_WHERE}.python", table.python),
        report=table.report,
        report_path=_report_path(fields, table),
        expected=tuple(table.expected),
        fraction=table.fraction,
    )


def _report_path(fields: Fields, table: TestsTable) -> str:
    if table.report is None:
        return ""
    path = posixpath.normpath(table.report_path or _REPORT_PATHS[table.report])
    if path.startswith(("/", "..")) or path == "." or "\0" in path:
        raise fields.error(f"{_WHERE}.report_path", "must be a path below /logs/verifier")
    return path
