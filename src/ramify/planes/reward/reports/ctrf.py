"""CTRF, the common test report format: one JSON document."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reports import CaseStatus, SuiteReport
from ramify.planes.reward.reports.cases import MAX_DEPTH, Cases
from ramify.planes.reward.reports.nesting import check_json

_STATUSES: dict[str, CaseStatus] = {
    "passed": "passed",
    "failed": "failed",
    "skipped": "skipped",
    "pending": "skipped",
    "other": "error",
}
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**9)]


class _Test(msgspec.Struct):
    name: str
    status: str
    duration: float = 0.0
    suite: str | list[str] = ""
    message: str | None = None


class _Summary(msgspec.Struct):
    tests: _Count
    passed: _Count
    failed: _Count
    pending: _Count = 0
    skipped: _Count = 0
    other: _Count = 0


class _Results(msgspec.Struct):
    summary: _Summary
    tests: list[_Test]
    tool: dict[str, Any] = {}


class _Report(msgspec.Struct):
    results: _Results


_decoder = msgspec.json.Decoder(_Report)


def parse_ctrf(data: bytes) -> SuiteReport:
    """Read a CTRF document. A case's id is `suite::name` (suites joined by `::`), or its name.

    Raises:
        InvalidRewardError: `malformed`: no CTRF, a key twice, an unknown status, a case twice, or
            a summary that the cases contradict.
    """
    cases = Cases("CTRF")
    if problem := check_json(data, MAX_DEPTH):
        cases.refuse(problem)
    try:
        results = _decoder.decode(data).results
    except msgspec.DecodeError as error:  # a wrong type is one too
        raise InvalidRewardError("malformed", f"the CTRF report is refused: {error}") from None
    counted = dict.fromkeys(_STATUSES, 0)
    for test in results.tests:
        if test.status not in _STATUSES:
            cases.refuse(f"{test.status[:40]!r} is not a status")
        counted[test.status] += 1
        suite = test.suite if isinstance(test.suite, str) else "::".join(test.suite)
        name = f"{suite}::{test.name}" if suite and test.name.strip() else test.name
        cases.add(name, _STATUSES[test.status], test.duration / 1000, test.message or "")
    summary = results.summary
    stated = {name: getattr(summary, name) for name in _STATUSES}
    if stated != counted or summary.tests != len(results.tests):
        cases.refuse("its summary is not what its cases come to")
    return cases.report()
