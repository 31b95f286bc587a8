"""One entry for all formats of reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ramify.contracts.errors import InvalidRewardError, UnknownNameError
from ramify.contracts.reports import SuiteReport
from ramify.planes.reward.reports.cases import MAX_REPORT_BYTES
from ramify.planes.reward.reports.ctrf import parse_ctrf
from ramify.planes.reward.reports.junit import parse_junit
from ramify.planes.reward.reports.tap import parse_tap

_FORMATS: Mapping[str, Callable[[bytes], SuiteReport]] = {
    "junit": parse_junit,
    "ctrf": parse_ctrf,
    "tap": parse_tap,
}


def parse_report(name: str, data: bytes) -> SuiteReport:
    """Read a report of the format `junit`, `ctrf` or `tap`. The bytes may be an attacker's.

    Ids are unique, control characters stripped, durations finite; the work is bounded by the size.

    Raises:
        InvalidRewardError: `malformed`, whatever is wrong with it.
        UnknownNameError: no such format.
    """
    if name not in _FORMATS:
        raise UnknownNameError("report format", name, _FORMATS)
    if len(data) > MAX_REPORT_BYTES:
        raise InvalidRewardError("malformed", f"the report is larger than {MAX_REPORT_BYTES} bytes")
    return _FORMATS[name](data)
