"""What a test runner reports, whatever its format: one list of cases."""

from __future__ import annotations

from typing import Literal

import msgspec

CaseStatus = Literal["passed", "failed", "skipped", "error"]


class CaseResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One test. `id` is unique in its report: `classname::name`, or as the format names it."""

    id: str
    status: CaseStatus
    duration_sec: float = 0.0
    message: str = ""


class SuiteReport(msgspec.Struct, frozen=True):
    """What one run of tests reports. `cases` stand in the order of the report."""

    cases: tuple[CaseResult, ...]

    def count(self, status: CaseStatus) -> int:
        """How many cases have this status."""
        return sum(case.status == status for case in self.cases)
