"""From what a run of tests reports to a number. Nothing that is missing or skipped ever passes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reports import CaseResult, CaseStatus, SuiteReport
from ramify.planes.reward.rewardfile import ParsedReward

_MOST_NAMED = 50


def grade(
    report: SuiteReport,
    expected: Collection[str],
    canaries: Mapping[str, CaseStatus] | None = None,
    *,
    fraction: bool = False,
) -> ParsedReward:
    """The reward of a report: 1 where every expected test passed and nothing else failed, else 0.

    With `fraction`, the share of the expected tests that passed; an unexpected failure counts as
    one more expected test. Skipped, expected to fail and missing count as failed. An expected id
    without parameters stands for all cases that it has (`test_a` for `test_a[1]` and
    `test_a[2]`), each of which must pass. Without `expected`, each reported test is.

    Args:
        report: what was reported.
        expected: ids of tests.
        canaries: tests of ours among them, by id, and how each must end.
        fraction: whether a part of the tests is worth a part of the reward.

    Raises:
        InvalidRewardError: `tampered`, a canary did not end as it must; `missing`, no tests.
    """
    wanted = canaries or {}
    found = {case.id: case for case in report.cases}
    for name, status in wanted.items():
        seen = found.pop(name, None)
        if seen is None or seen.status != status:
            said = "is missing" if seen is None else f"was reported as {seen.status}"
            raise InvalidRewardError(
                "tampered", f"a test of ours that must be {status} {said}: the runner was changed"
            )
    if not found and not expected:
        raise InvalidRewardError("missing", "no test was reported")
    by_base: dict[str, list[CaseResult]] = {}
    for case in found.values():
        by_base.setdefault(base_id(case.id), []).append(case)
    verdicts: dict[str, bool] = {}
    covered: set[str] = set()
    for name in expected or found:
        cases = [found[name]] if name in found else []
        if "[" not in name:
            cases += [case for case in by_base.get(name, ()) if case.id != name]
        covered.update(case.id for case in cases)
        verdicts[name] = bool(cases) and all(case.status == "passed" for case in cases)
    # A test that nobody expected and that is skipped says nothing; one that fails is a failure.
    extra = [
        c.id for c in found.values() if c.id not in covered and c.status in ("failed", "error")
    ]
    verdicts.update(dict.fromkeys(extra, False))
    return _reward(verdicts, report, len(wanted), fraction=fraction)


def base_id(name: str) -> str:
    """The id of a test without its parameters."""
    return name.partition("[")[0]


def _reward(
    verdicts: Mapping[str, bool], report: SuiteReport, canaries: int, *, fraction: bool
) -> ParsedReward:
    passed = sum(verdicts.values())
    reward = passed / len(verdicts) if fraction else float(passed == len(verdicts))
    items = {"tests": float(len(verdicts)), "passed": float(passed)}
    failed = [name for name, good in verdicts.items() if not good]
    details: dict[str, object] = {"reported": len(report.cases) - canaries}
    if failed:
        details["failed"] = sorted(failed)[:_MOST_NAMED]
    return ParsedReward(reward, items, details)
