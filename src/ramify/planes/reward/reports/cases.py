"""What all formats of reports share: bounds, clean text, and a list without duplicates."""

from __future__ import annotations

import math
import re
from typing import NoReturn

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reports import CaseResult, CaseStatus, SuiteReport
from ramify.contracts.sandbox import MIB

MAX_REPORT_BYTES = 8 * MIB
"""A report larger than this is malformed."""
MAX_CASES = 100_000
"""A report of more cases than this is malformed."""
MAX_DEPTH = 32
"""A report nested deeper than this is malformed."""

_MAX_ID = 1000
_MAX_MESSAGE = 4000
_LONGEST_SEC = 1e9
# C0 and C1 controls, and what turns the direction of text or hides in it; a tab or newline stays.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


class Cases:
    """Collects the cases of one report. Raises InvalidRewardError (`malformed`) on what is off."""

    def __init__(self, format_name: str) -> None:
        self._format = format_name
        self._found: dict[str, CaseResult] = {}

    def add(
        self, name: str, status: CaseStatus, duration_sec: float = 0.0, message: str = ""
    ) -> None:
        """One more case; an id that is empty, too long or there twice is refused."""
        clean = clean_text(name).strip()
        if not clean:
            self.refuse("a case has no name")
        if len(clean) > _MAX_ID:
            self.refuse(f"a case has a name of more than {_MAX_ID} characters")
        if clean in self._found:
            self.refuse(f"case {clean[:200]!r} is there twice")
        if len(self._found) >= MAX_CASES:
            self.refuse(f"it has more than {MAX_CASES} cases")
        text = clean_text(message[: 2 * _MAX_MESSAGE])[:_MAX_MESSAGE]
        self._found[clean] = CaseResult(clean, status, self._seconds(duration_sec), text)

    def report(self) -> SuiteReport:
        """What was collected."""
        return SuiteReport(tuple(self._found.values()))

    def refuse(self, why: str) -> NoReturn:
        """The report cannot be read."""
        raise InvalidRewardError("malformed", f"the {self._format} report is refused: {why}")

    def _seconds(self, value: float) -> float:
        if not math.isfinite(value) or not 0 <= value <= _LONGEST_SEC:
            self.refuse("a duration is no number of seconds")
        return value


def clean_text(text: str) -> str:
    """The text without characters that steer a terminal or hide what they stand in."""
    return _CONTROLS.sub("", text)
