"""What tests print, read as Terminal-Bench's parsers do: passed means that all of them passed.

The text comes from the same processes as the code under test, which may print reports of its own.
So a failure that is reported anywhere counts, whatever else is said about the same test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ramify.contracts.errors import InvalidRewardError
from ramify.planes.reward.rewardfile import ParsedReward

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_SUMMARY = re.compile(r"^=+ *short test summary info *=+[ \t\r]*$", re.IGNORECASE | re.MULTILINE)
_RESULT = re.compile(
    r"^(?P<word>PASSED|FAILED|SKIPPED|XFAIL|XPASS|ERROR):?\s+(?P<name>\S.*?)\s*$", re.MULTILINE
)
_PASSING = frozenset({"PASSED", "SKIPPED", "XFAIL"})


def parse_test_output(parser: str, output: bytes) -> ParsedReward:
    """The reward that a parser of Terminal-Bench reads from the output: 1, or 0.

    The items are how many tests there were and how many passed; the details name those that did
    not.

    Raises:
        InvalidRewardError: `missing`, the output holds no report of that kind.
    """
    text = _ESCAPES.sub("", output.decode(errors="replace")).replace("\r\n", "\n")
    results = _PARSERS[parser](text)
    failed = sorted(name for name, passed in results.items() if not passed)
    return ParsedReward(
        reward=0.0 if failed else 1.0,
        items={"tests": float(len(results)), "passed": float(len(results) - len(failed))},
        details={"failed": failed} if failed else {},
    )


def _pytest(text: str) -> dict[str, bool]:
    parts = _SUMMARY.split(text, maxsplit=1)
    if len(parts) < 2:
        raise _missing("pytest's short test summary (run it with -rA)")
    results: dict[str, bool] = {}
    for match in _RESULT.finditer(parts[1]):
        word, name = match["word"], match["name"]
        if word == "FAILED":
            name = name.rsplit(" - ", 1)[0]
        name = name.split("::", 1)[-1]
        results[name] = results.get(name, True) and word in _PASSING
    if not results:
        raise _missing("a result in pytest's short test summary (run it with -rA)")
    return results


def _between(start: str, end: str, passed: str) -> Callable[[str], dict[str, bool]]:
    """A parser of a verdict between two markers; of several, each must be good."""
    block = re.compile(f"{re.escape(start)}(.*?){re.escape(end)}", re.DOTALL)

    def parse(text: str) -> dict[str, bool]:
        verdicts = block.findall(text)
        if not verdicts:
            raise _missing(f"a verdict between {start!r} and {end!r}")
        return {"tests": all(verdict.strip() == passed for verdict in verdicts)}

    return parse


def _swelancer(text: str) -> dict[str, bool]:
    lowered = text.lower()
    if "swe lancer success" in lowered or "swe lancer failure" in lowered:
        return {"tests": "swe lancer failure" not in lowered}
    # A task of this kind may also be judged by its tool having come to its end.
    return {"tests": "user_tool" in lowered and "completed" in lowered}


_PARSERS: Mapping[str, Callable[[str], dict[str, bool]]] = {
    "pytest": _pytest,
    "swebench": _between("SWEBench results starts here", "SWEBench results ends here", "PASSED"),
    "sweperf": _between("SWE-Perf results starts here", "SWE-Perf results ends here", "PASSED"),
    "mlebench": _between(
        "MLEBench results starts here", "MLEBench results ends here", "ALL TESTS PASSED"
    ),
    "swelancer": _swelancer,
}


def _missing(what: str) -> InvalidRewardError:
    return InvalidRewardError("missing", f"the tests did not print {what}")
