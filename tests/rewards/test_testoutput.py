"""Reading a reward from what tests print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError
from ramify.planes.reward.testoutput import parse_test_output

HEAD = "collected 2 items\n\x1b[36m=== short test summary info ===\x1b[0m\r\n"


@pytest.mark.parametrize(
    ("lines", "reward", "failed"),
    [
        ("PASSED t.py::test_a\r\nPASSED t.py::test_b\n= 2 passed =", 1.0, []),
        ("\x1b[32mPASSED\x1b[0m t.py::test_a\nSKIPPED [1] t.py:3: why\nXFAIL t.py::x", 1.0, []),
        ("PASSED t.py::test_a\nFAILED t.py::test_b - assert 1 == 2", 0.0, ["test_b"]),
        ("ERROR t.py::test_b\n", 0.0, ["test_b"]),
        ("XPASS t.py::test_b\n", 0.0, ["test_b"]),
        ("FAILED t.py::test_b\nPASSED t.py::test_b\n", 0.0, ["test_b"]),
        ("FAILED t.py::a\n=== short test summary info ===\nPASSED t.py::a", 0.0, ["a"]),
    ],
)
def test_pytest(lines: str, reward: float, failed: list[str]) -> None:
    parsed = parse_test_output("pytest", (HEAD + lines).encode())
    assert (parsed.reward, parsed.details.get("failed", [])) == (reward, failed)


@pytest.mark.parametrize(
    "output", ["", "2 passed in 0.1s", "PASSED t.py::a", HEAD + "= 1 passed ="]
)
def test_without_a_summary_there_is_no_reward(output: str) -> None:
    with pytest.raises(InvalidRewardError, match="missing"):
        parse_test_output("pytest", output.encode())


@pytest.mark.parametrize(
    ("parser", "output", "reward"),
    [
        ("swebench", "SWEBench results starts here\nPASSED\nSWEBench results ends here", 1.0),
        ("swebench", "SWEBench results starts here\nFAILED\nSWEBench results ends here", 0.0),
        ("sweperf", "SWE-Perf results starts here PASSED SWE-Perf results ends here", 1.0),
        (
            "mlebench",
            "MLEBench results starts here\nALL TESTS PASSED\nMLEBench results ends here",
            1.0,
        ),
        ("mlebench", "MLEBench results starts here\nno\nMLEBench results ends here", 0.0),
        ("swelancer", "SWE Lancer Success", 1.0),
        ("swelancer", "SWE Lancer success\nswe lancer failure", 0.0),
        ("swelancer", "user_tool has completed", 1.0),
        ("swelancer", "nothing", 0.0),
    ],
)
def test_other_parsers(parser: str, output: str, reward: float) -> None:
    assert parse_test_output(parser, output.encode()).reward == reward


@given(
    parser=st.sampled_from(["pytest", "swebench", "sweperf", "mlebench", "swelancer"]),
    output=st.binary(max_size=200),
)
def test_whatever_is_printed_is_a_reward_or_invalid(parser: str, output: bytes) -> None:
    try:
        parsed = parse_test_output(parser, HEAD.encode() + output)
    except InvalidRewardError:
        return
    assert parsed.reward in (0.0, 1.0)
