"""TAP, the test anything protocol, versions 12 to 14."""

from __future__ import annotations

import re

from ramify.contracts.reports import CaseStatus, SuiteReport
from ramify.planes.reward.reports.cases import MAX_CASES, Cases

_POINT = re.compile(r"(?P<not>not )?ok\b[ \t]*(?P<number>[0-9]{1,7})?[ \t]*(?:- )?(?P<rest>.*)")
_PLAN = re.compile(r"1\.\.(?P<last>[0-9]{1,7})[ \t]*(?:#.*)?")
_BAIL = re.compile(r"[ \t]*bail out!", re.IGNORECASE)
_DIRECTIVE = re.compile(r"(?<!\\)#[ \t]*(?P<word>skip\S*|todo)\b[ \t]*(?P<why>.*)", re.IGNORECASE)
_VERSION = re.compile(r"TAP version (?:12|13|14)[ \t]*")


def parse_tap(data: bytes) -> SuiteReport:
    """Read TAP. A case's id is its description, or `#number` where it has none.

    Only the top level counts: a subtest's own points are indented, and summed up in the point that
    ends it. What is no TAP is skipped, as the protocol says. `# SKIP` and `# TODO` are `skipped`,
    whether ok or not.

    Raises:
        InvalidRewardError: `malformed`: no plan or two, other points than the plan says, a number
            out of order, a bail out, a description twice.
    """
    cases = Cases("TAP")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        cases.refuse("it is not UTF-8")
    plan, count = -1, 0
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if _BAIL.match(line):
            cases.refuse("the run bailed out")
        if found := _PLAN.fullmatch(line):
            if plan >= 0:
                cases.refuse("it has two plans")
            plan = int(found["last"])
        elif (found := _POINT.fullmatch(line)) is not None:
            count += 1
            if found["number"] is not None and int(found["number"]) != count:
                cases.refuse(f"point {count} is numbered {found['number']}")
            _add(cases, found, count)
        elif line.startswith("TAP version") and not _VERSION.fullmatch(line):
            cases.refuse("it is of a version that is not 12 to 14")
    if plan < 0:
        cases.refuse("it has no plan")
    if plan != count or plan > MAX_CASES:
        cases.refuse(f"its plan says {plan} points, it has {count}")
    return cases.report()


def _add(cases: Cases, point: re.Match[str], number: int) -> None:
    rest = point["rest"]
    status: CaseStatus = "failed" if point["not"] else "passed"
    message = ""
    if directive := _DIRECTIVE.search(rest):
        status, message, rest = "skipped", directive["why"], rest[: directive.start()]
    name = rest.replace("\\#", "#").replace("\\\\", "\\").strip()
    cases.add(name or f"#{number}", status, message=message)
