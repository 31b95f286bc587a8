"""The grammar of reward files: what is read, what is refused, and that nothing else happens."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import InvalidRewardError
from ramify.planes.reward.rewardfile import MAX_REWARD_BYTES, parse_reward

UNIT = (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "reward", "items", "details"),
    [
        ('{"reward": 1}', 1.0, {}, {}),
        ('{"reward": 0.5, "speed": 12}', 0.5, {"speed": 12.0}, {}),
        ('{"accuracy": 0.25}', 0.25, {}, {}),
        ('{"accuracy": 0.25, "details": {"n": 4}}', 0.25, {"details.n": 4.0}, {}),
        (
            '{"reward": 1, "metrics": {"a": {"b": 2}}, "details": {"ok": true, "t": ["x", 1]}}',
            1.0,
            {"metrics.a.b": 2.0},
            {"details.ok": True, "details.t": ["x", 1.0]},
        ),
        (
            '{"reward": 1, "done": true, "note": "x", "of": [2], "at": null, "metrics": {"a": 3}}',
            1.0,
            {"metrics.a": 3.0},
            {"done": True, "note": "x", "of": [2.0], "at": None},
        ),
        (' \n{"reward": 1e-3}\n', 0.001, {}, {}),
        ('{"reward": 1, "details": {"said": "[[[[[[[[[[[[ \\" {{"}}', 1.0, {},
         {"details.said": '[[[[[[[[[[[[ " {{'}),
        ('{"reward": 1, "details": {"said": "\\ud800"}}', 1.0, {}, {"details.said": "?"}),
    ],
)  # fmt: skip
def test_json_that_counts(text, reward, items, details):
    assert parse_reward(text.encode(), None, UNIT) == (reward, items, details)


@pytest.mark.parametrize(
    "text",
    [
        "", "  \n", "1", "[1]", '"1"', "null", "true", "{}", '{"reward": NaN}',
        '{"reward": Infinity}', '{"reward": -Infinity}', '{"reward": 1e309}', '{"reward": true}',
        '{"reward": "1"}', '{"reward": [1]}', '{"reward": null}', '{"reward": 1, "reward": 0}',
        '{"a": 1, "b": 0}', '{"reward": 1} x', '{"reward": 1', '{"score": 1, "note": "x"}',
        '{"reward": true, "score": 1}', '{"reward": {"x": 1}, "score": 1, "done": true}',
        '{"reward": 1, "m": {"x": NaN}}', '{"reward": 1, "m": {"x": 1, "x": 2}}',
        '{"reward": 1, "a.b": 1, "a": {"b": 2}}', '{"reward": {"x": 1}}', '{"rew\\u001bard": 1}',
        '{"": 1}', '\ufeff{"reward": 1}', '{"reward": 01}', '{"reward": +1}', '{"reward": .5}',
        '{"reward": 0x1}', "{'reward': 1}", '{"reward": 1,}', '{"reward": ' + "9" * 5000 + "}",
        '{"reward": 1, "m": ' + '{"a":' * 8 + "1" + "}" * 8 + "}",
        '{"reward": 1, "' + "n" * 201 + '": 1}',
        json.dumps({"reward": 1, "m": {f"n{i}": i for i in range(1000)}}),
        '{"reward": 1, "m": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)  # fmt: skip
def test_json_that_is_malformed(text):
    with pytest.raises(InvalidRewardError) as caught:
        parse_reward(text.encode(), b"1", UNIT)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("text", "reward"),
    [(b"1", 1.0), (b" 0.5\n", 0.5), (b"1.\r\n", 1.0), (b".5", 0.5), (b"+1", 1.0), (b"1e-1", 0.1)],
)
def test_text_that_counts(text, reward):
    assert parse_reward(None, text, UNIT) == (reward, {}, {})


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\n", b"nan", b"inf", b"-Infinity", b"1e309", b"true", b'"1"', b"1 0", b"1\n0",
        b"1,0", b"0x1", b"1_0", b"\xef\xbb\xbf1", b"\xff\xfe1\x00", b"\xd9\xa1", b"1\x00",
        b"[1]", b"reward: 1", b"\x0b1", b"1e", b".", b"-",
    ],
)  # fmt: skip
def test_text_that_is_malformed(text):
    with pytest.raises(InvalidRewardError) as caught:
        parse_reward(None, text, UNIT)
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize("number", ["-0.001", "2", "1.0000001", "1000000"])
def test_out_of_range(number):
    for data in ((f'{{"reward": {number}}}'.encode(), None), (None, number.encode())):
        with pytest.raises(InvalidRewardError) as caught:
            parse_reward(*data, UNIT)
        assert caught.value.reason == "range"


def test_range_is_the_tasks_own_and_inclusive():
    assert parse_reward(None, b"-10", (-10.0, 10.0)).reward == -10.0
    assert parse_reward(None, b"10", (-10.0, 10.0)).reward == 10.0


def test_neither_file_is_missing_and_json_goes_before_text():
    with pytest.raises(InvalidRewardError) as caught:
        parse_reward(None, None, UNIT)
    assert caught.value.reason == "missing"
    assert parse_reward(b'{"reward": 0, "x": 1}', b"0.0", UNIT).items == {"x": 1.0}
    assert parse_reward(b'{"accuracy": 0}', b"1", UNIT).reward == 0.0


def test_files_that_contradict_each_other_are_tampered_with():
    with pytest.raises(InvalidRewardError) as caught:
        parse_reward(b'{"reward": 1}', b"0", UNIT)
    assert caught.value.reason == "tampered"


def test_too_large_is_malformed():
    padding = b" " * MAX_REWARD_BYTES
    for data in ((b'{"reward": 1}' + padding, None), (None, b"1" + padding)):
        with pytest.raises(InvalidRewardError) as caught:
            parse_reward(*data, UNIT)
        assert caught.value.reason == "malformed"


def test_hostile_megabytes_are_refused_in_linear_time():
    size = MAX_REWARD_BYTES - 64
    hostile = [b'"' + b'\\"' * (size // 2), b"{" * size, b"9" * size, b'{"a":"' + b"[" * size]
    start = time.monotonic()
    for data in hostile:
        with pytest.raises(InvalidRewardError):
            parse_reward(data, None, UNIT)
        with pytest.raises(InvalidRewardError):
            parse_reward(None, data, UNIT)
    assert time.monotonic() - start < 20


def _read(*data):
    """What is parsed, or None where it is invalid. Anything else that is raised fails the test."""
    try:
        return parse_reward(*data, (-1e300, 1e300))
    except InvalidRewardError:
        return None


@given(st.binary(max_size=400), st.binary(max_size=400), st.booleans(), st.booleans())
def test_any_bytes_give_a_finite_number_or_invalid(first, second, has_json, has_txt):
    parsed = _read(first if has_json else None, second if has_txt else None)
    if parsed is not None:
        assert all(math.isfinite(number) for number in [parsed.reward, *parsed.items.values()])


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["reward", "a", "b", "metrics", ""]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_TREES)
def test_any_json_gives_what_it_says_or_invalid(tree):
    parsed = _read(json.dumps(tree).encode(), None)
    if parsed is None:
        return
    assert isinstance(tree, dict)
    flat = [v for v in tree.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    assert parsed.reward in [float(value) for value in flat]
    assert all(math.isfinite(number) for number in [parsed.reward, *parsed.items.values()])
    json.dumps(parsed.details).encode()


@given(st.floats(0, 1), st.dictionaries(st.sampled_from(["x", "y", "z.w"]), st.floats(-9, 9)))
def test_what_python_writes_is_read_back(reward, items):
    data = json.dumps({"reward": reward, **items}).encode()
    assert parse_reward(data, None, UNIT) == (reward, items, {})
    assert parse_reward(None, repr(reward).encode(), UNIT).reward == reward
