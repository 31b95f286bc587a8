"""What the runner in the sandbox says, line by line; anything out of order is tampering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from ramify.contracts.errors import ConfigError, InvalidRewardError
from ramify.contracts.reports import CaseStatus, SuiteReport
from ramify.contracts.sandbox import ExecResult
from ramify.planes.reward.reports.cases import Cases

TESTS_FAILED = 1
"""The exit code of a run: some of our own tests always fail."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    n: int
    id: str | None = None
    status: CaseStatus = "error"
    sec: float = 0.0
    message: str = ""
    start: dict[str, Any] | None = None
    end: int | None = None
    in_process: str | None = None
    lacks: str | None = None
    python: str = ""


_decoder = msgspec.json.Decoder(_Line)


@dataclass(slots=True)
class Heard:
    """A whole run. `facts` is what the kernel says about the process that the tests ran in,
    `in_process` names code of the agent that ran in it, empty where none did."""

    report: SuiteReport
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    in_process: str = ""


def read_events(result: ExecResult, nonce: str, runner: str) -> Heard:
    """The report in a run's output.

    Raises:
        InvalidRewardError: `missing`, it did not come to its end; `tampered`, somebody else wrote
            there, or the exit code says otherwise; `malformed`, more than can be read.
        ConfigError: the sandbox has no such runner.
    """
    if result.stdout_dropped:
        raise InvalidRewardError("malformed", "the runner reported more than can be read")
    prefix, cases = f"{nonce} ".encode(), Cases("runner's")
    heard = Heard(SuiteReport(()))
    ended: int | None = None
    for number, raw in enumerate(result.stdout.splitlines(), 1):
        line = _line(raw, prefix, number)
        if ended is not None:
            raise InvalidRewardError("tampered", "something was reported after the end")
        if line.lacks is not None:
            raise _lacking(line.lacks, line.python)
        if line.start is not None:
            heard.facts = line.start
        elif line.in_process is not None:
            heard.in_process = heard.in_process or line.in_process
        elif line.end is not None:
            ended = line.end
        elif line.id is not None:
            cases.add(line.id, line.status, line.sec, line.message)
    if ended is None:
        raise InvalidRewardError("missing", _unfinished(result, runner))
    if ended != TESTS_FAILED or result.exit_code != ended:
        raise InvalidRewardError(
            "tampered",
            f"the runner ended with {ended} and its process with {result.exit_code}, where our "
            f"own failing tests make it {TESTS_FAILED}",
        )
    heard.report = cases.report()
    return heard


def _line(raw: bytes, prefix: bytes, number: int) -> _Line:
    if not raw.startswith(prefix):
        raise InvalidRewardError("tampered", "somebody else wrote among the runner's reports")
    try:
        line = _decoder.decode(raw[len(prefix) :])
    except msgspec.DecodeError:
        raise InvalidRewardError("tampered", "a line of the runner's report is none") from None
    if line.n != number:
        raise InvalidRewardError("tampered", "the runner's reports are not in order")
    return line


def _lacking(runner: str, python: str) -> ConfigError:
    return ConfigError(
        f"{python} in the verifier's sandbox has no {runner}; install it in the task's image, "
        'name the Python that has it as [ramify.tests] python, or use runner = "unittest"',
        field="ramify.tests.runner",
    )


def _unfinished(result: ExecResult, runner: str) -> str:
    said = result.stderr[-300:].decode(errors="replace").strip()
    return f"the {runner} run did not come to its end (exit {result.exit_code}): {said}"
