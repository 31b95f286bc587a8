"""Reports of test runners: what honest ones say is read, what hostile ones say is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError, UnknownNameError
from ramify.contracts.reports import CaseResult, SuiteReport
from ramify.planes.reward.reports.grading import grade
from ramify.planes.reward.reports.parse import parse_report

FORMATS = ("junit", "ctrf", "tap")
PYTEST = b"""<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="1"
 tests="4" time="0.5" timestamp="2026-01-01T00:00:00" hostname="h"><properties><property name="a"
 value="b"/></properties>
<testcase classname="tests.test_a" name="test_ok[1]" time="0.25"><system-out>x</system-out>
</testcase>
<testcase classname="tests.test_a" name="test_no" time="0.1"><failure message="1 != 2">t</failure>
</testcase><testcase classname="tests.test_a" name="test_skip"><skipped type="pytest.skip"
 message="why"/></testcase><testcase classname="" name="tests.test_b" time="0.0"><error
 message="collection"/></testcase></testsuite></testsuites>"""


def statuses(report: SuiteReport) -> dict[str, str]:
    return {case.id: case.status for case in report.cases}


def test_junit_of_pytest() -> None:
    report = parse_report("junit", PYTEST)
    assert statuses(report) == {
        "tests.test_a::test_ok[1]": "passed",
        "tests.test_a::test_no": "failed",
        "tests.test_a::test_skip": "skipped",
        "tests.test_b": "error",
    }
    assert report.cases[0].duration_sec == 0.25
    assert report.cases[1].message == "1 != 2"


def test_junit_of_others() -> None:
    nested = b"""<testsuites><testsuite name="a"><testsuite name="b"><testcase name="x"
    time="1,234.5" status="run"/></testsuite>
    <testcase name="y" status="notrun"/></testsuite></testsuites>"""
    assert statuses(parse_report("junit", nested)) == {"x": "passed", "y": "skipped"}
    both = b'<testsuite><testcase name="x"><skipped/><failure/></testcase></testsuite>'
    assert statuses(parse_report("junit", both)) == {"x": "failed"}
    prefixed = b'<j:testsuite xmlns:j="urn:j"><j:testcase name="x"/></j:testsuite>'
    assert statuses(parse_report("junit", prefixed)) == {"x": "passed"}


def ctrf(tests: list[dict], /, **summary: int) -> bytes:
    counts = {
        s: sum(t["status"] == s for t in tests)
        for s in ("passed", "failed", "skipped", "pending", "other")
    }
    return json.dumps(
        {
            "reportFormat": "CTRF",
            "results": {
                "tool": {"name": "t"},
                "summary": {"tests": len(tests), "start": 1, "stop": 2, **counts, **summary},
                "tests": tests,
            },
        }
    ).encode()


def test_ctrf() -> None:
    data = ctrf(
        [
            {"name": "a", "status": "passed", "duration": 1500},
            {"name": "a", "status": "failed", "duration": 1, "suite": "s", "message": "no"},
            {"name": "c", "status": "pending", "duration": 0, "suite": ["s", "t"]},
            {"name": "d", "status": "other", "duration": 0},
        ]
    )
    report = parse_report("ctrf", data)
    assert statuses(report) == {"a": "passed", "s::a": "failed", "s::t::c": "skipped", "d": "error"}
    assert (report.cases[0].duration_sec, report.cases[1].message) == (1.5, "no")


def test_tap() -> None:
    data = b"""TAP version 14
1..5
ok 1 - adds
not ok 2 - subtracts
  ---
  message: "1 != 2"
  ...
    # Subtest: inner
    not ok 1 - hidden
    1..1
ok 3 - inner
not ok 4 divides # TODO not yet
ok # SKIP no machine
noise
"""
    assert statuses(parse_report("tap", data)) == {
        "adds": "passed",
        "subtracts": "failed",
        "inner": "passed",
        "divides": "skipped",
        "#5": "skipped",
    }


def test_subtests_that_a_suite_counts_have_no_case() -> None:
    data = b'<testsuite tests="3"><testcase name="a"/></testsuite>'
    assert statuses(parse_report("junit", data)) == {"a": "passed"}


LAUGHS = b"""<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><testsuite><testcase name="&b;"/>
</testsuite>"""
XXE = b"""<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><testsuite><testcase name="&e;"/>
</testsuite>"""
OUTSIDE = b'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd"><testsuite/>'
HOSTILE = {
    "junit": {
        "billion laughs": LAUGHS,
        "external entity": XXE,
        "external type": OUTSIDE,
        "parameter entity": b'<!DOCTYPE x [<!ENTITY % p "q"> %p;]><testsuite/>',
        "unknown entity": b'<testsuite><testcase name="&nbsp;"/></testsuite>',
        "twice": b'<testsuite><testcase name="a"/><testcase name="a"/></testsuite>',
        "twice, spelled otherwise": b'<testsuite><testcase name="a"/><testcase name=" a&#x7f;"/>'
        b"</testsuite>",
        "no name": b'<testsuite><testcase classname="a"/></testsuite>',
        "blank name": b'<testsuite><testcase name="  "/></testsuite>',
        "more than stated": b'<testsuite tests="0"><testcase name="a"/></testsuite>',
        "negative count": b'<testsuite tests="-1"/>',
        "huge count": b'<testsuite tests="' + b"9" * 5000 + b'"/>',
        "NaN seconds": b'<testsuite><testcase name="a" time="nan"/></testsuite>',
        "infinite seconds": b'<testsuite><testcase name="a" time="1e99"/></testsuite>',
        "negative seconds": b'<testsuite><testcase name="a" time="-1"/></testsuite>',
        "case in a case": b'<testsuite><testcase name="a"><testcase name="b"/></testcase>'
        b"</testsuite>",
        "suite in a case": b'<testsuite><testcase name="a"><testsuite/></testcase></testsuite>',
        "another root": b'<html><testcase name="a"/></html>',
        "cut off": PYTEST[:-30],
        "two documents": PYTEST + PYTEST[40:],
        "deep": b"<testsuite>" * 200 + b"</testsuite>" * 200,
        "another encoding": b'<?xml version="1.0" encoding="x-none"?><testsuite/>',
        "no UTF-8": b'<testsuite><testcase name="\xff\xfe"/></testsuite>',
        "a bare zero": b'<testsuite><testcase name="a\x00"/></testsuite>',
        "long name": b'<testsuite><testcase name="' + b"a" * 2000 + b'"/></testsuite>',
        "too many": b"<testsuite>"
        + b"".join(b'<testcase name="%d"/>' % n for n in range(100_001))
        + b"</testsuite>",
    },
    "ctrf": {
        "no object": b"[1]",
        "cut off": ctrf([{"name": "a", "status": "passed", "duration": 0}])[:-3],
        "no summary": b'{"results": {"tests": []}}',
        "summary says more": ctrf([{"name": "a", "status": "passed", "duration": 0}], passed=2),
        "summary says fewer": ctrf([{"name": "a", "status": "failed", "duration": 0}], failed=0),
        "summary says 2 tests": ctrf([{"name": "a", "status": "passed", "duration": 0}], tests=2),
        "unknown status": ctrf([{"name": "a", "status": "great", "duration": 0}]),
        "twice": ctrf([{"name": "a", "status": "passed", "duration": 0}] * 2),
        "no name": ctrf([{"name": "", "status": "passed", "duration": 0}]),
        "a name that is a number": ctrf([{"name": 1, "status": "passed", "duration": 0}]),
        "negative seconds": ctrf([{"name": "a", "status": "passed", "duration": -1}]),
        "NaN seconds": ctrf([{"name": "a", "status": "passed", "duration": 0}]).replace(
            b'"duration": 0', b'"duration": NaN'
        ),
        "seconds as text": ctrf([{"name": "a", "status": "passed", "duration": "1"}]),
        "key twice": ctrf([{"name": "a", "status": "failed", "duration": 0}]).replace(
            b'"status": "failed"', b'"status": "failed", "status": "passed"'
        ),
        "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "no UTF-8": b'{"results": "\xff"}',
    },
    "tap": {
        "no plan": b"ok 1 - a\n",
        "two plans": b"1..1\nok 1 - a\n1..1\n",
        "fewer than planned": b"1..2\nok 1 - a\n",
        "more than planned": b"1..1\nok 1 - a\nok 2 - b\n",
        "out of order": b"1..2\nok 2 - a\nok 1 - b\n",
        "number twice": b"1..2\nok 1 - a\nok 1 - b\n",
        "bail out": b"1..1\nok 1 - a\nBail out! disk full\n",
        "twice": b"1..2\nok 1 - a\nok 2 - a\n",
        "another version": b"TAP version 99\n1..1\nok 1\n",
        "no UTF-8": b"1..1\nok 1 - \xff\n",
        "a plan too large": b"1..9999999\n",
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in FORMATS for name in HOSTILE[kind]]
)
def test_hostile_reports_are_refused(kind: str, name: str) -> None:
    with pytest.raises(InvalidRewardError) as caught:
        parse_report(kind, HOSTILE[kind][name])
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize("kind", FORMATS)
def test_too_large(kind: str) -> None:
    with pytest.raises(InvalidRewardError, match="larger than"):
        parse_report(kind, b" " * (8 * 1024 * 1024 + 1))


@pytest.mark.parametrize("kind", FORMATS)
def test_empty(kind: str) -> None:
    with pytest.raises(InvalidRewardError, match="malformed"):
        parse_report(kind, b"")


def test_unknown_format() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'junit'"):
        parse_report("junit5", b"")


def test_controls_are_stripped() -> None:
    data = "1..1\nok 1 - a\x1b]52;c;Zm9v\x07b\u202ec\r\n".encode()
    assert [case.id for case in parse_report("tap", data).cases] == ["a]52;c;Zm9vbc"]
    case = '<testcase name="a&#x85;b\u2066"><failure message="x&#x9b;31m"/></testcase>'
    case = parse_report("junit", f"<testsuite>{case}</testsuite>".encode()).cases[0]
    assert (case.id, case.message) == ("ab", "x31m")


@given(st.binary(max_size=400), st.sampled_from(FORMATS))
def test_any_bytes_are_a_report_or_malformed(data: bytes, kind: str) -> None:
    parsed(kind, data)


FRAGMENTS = [
    b"<testsuite>", b"</testsuite>", b'<testsuite tests="1">', b'<testcase name="a"/>',
    b'<testcase name="b" time="1">', b"</testcase>", b"<failure/>", b"<skipped>", b"</skipped>",
    b"<!DOCTYPE a>", b"<![CDATA[x]]>", b"&amp;", b"&#0;", b"<?pi?>", b"<!-- -->",
    b"1..1\n", b"ok 1 - a\n", b"not ok 2\n", b"# SKIP\n", b"    ok 1\n", b"Bail out!\n",
    b'{"results":', b'{"summary":', b'{"tests":1,"passed":1,"failed":0}', b'"tests":[', b"]", b"}",
    b'{"name":"a","status":"passed"}', b",", b"[", b"null", b"1e999", b"NaN", b'"\\ud800"',
]  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14), st.sampled_from(FORMATS))
def test_any_fragments_are_a_report_or_malformed(parts: list[bytes], kind: str) -> None:
    parsed(kind, b"".join(parts))


def parsed(kind: str, data: bytes) -> None:
    try:
        report = parse_report(kind, data)
    except InvalidRewardError as error:
        assert error.reason == "malformed"  # noqa: PT017 (either may happen)
        return
    ids = [case.id for case in report.cases]
    assert len(ids) == len({*ids})
    assert all(case.id.strip() == case.id != "" for case in report.cases)
    assert all(0 <= case.duration_sec < float("inf") for case in report.cases)


def report(**cases: str) -> SuiteReport:
    return SuiteReport(tuple(CaseResult(name, status) for name, status in cases.items()))  # type: ignore[arg-type]


def test_all_expected_passed() -> None:
    assert grade(report(a="passed", b="passed"), ["a", "b"]).reward == 1


@pytest.mark.parametrize("status", ["failed", "error", "skipped"])
def test_one_did_not_pass(status: str) -> None:
    assert grade(report(a="passed", b=status), ["a", "b"]).reward == 0
    graded = grade(report(a="passed", b=status), ["a", "b"], fraction=True)
    assert (graded.reward, graded.details["failed"]) == (0.5, ["b"])


def test_missing_counts_as_failed() -> None:
    graded = grade(report(a="passed"), ["a", "b"], fraction=True)
    assert (graded.reward, graded.items) == (0.5, {"tests": 2.0, "passed": 1.0})
    assert grade(report(), ["a"]).reward == 0


def test_unexpected_tests() -> None:
    assert grade(report(a="passed", b="failed"), ["a"]).reward == 0
    assert grade(report(a="passed", b="passed", c="skipped"), ["a"]).reward == 1
    assert grade(report(a="passed", b="error"), ["a"], fraction=True).reward == 0.5


def test_an_id_stands_for_its_cases() -> None:
    cases = {"a[1]": "passed", "a[2]": "passed", "b": "passed"}
    assert grade(report(**cases), ["a", "b"]).reward == 1
    assert grade(report(**cases | {"a[2]": "failed"}), ["a", "b"]).reward == 0
    assert grade(report(**cases), ["a[1]", "a[3]", "b"]).reward == 0


def test_without_expected_all_that_is_reported() -> None:
    assert grade(report(a="passed"), []).reward == 1
    assert grade(report(a="passed", b="skipped"), []).reward == 0
    with pytest.raises(InvalidRewardError) as caught:
        grade(report(), [])
    assert caught.value.reason == "missing"


@pytest.mark.parametrize("seen", [{"x": "passed"}, {}, {"x": "error"}])
def test_a_canary_that_did_not_end_as_it_must(seen: dict[str, str]) -> None:
    with pytest.raises(InvalidRewardError) as caught:
        grade(report(a="passed", **seen), ["a"], {"x": "failed"})
    assert caught.value.reason == "tampered"
    assert grade(report(a="passed", x="failed"), ["a"], {"x": "failed"}).reward == 1
