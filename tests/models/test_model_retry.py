"""What an endpoint's failure means, and how long to wait."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import LimitExceededError, ModelError, ModelRefusedError
from ramify.planes.model.retry import Pacing, refused, retry_after

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"Retry-After": "-7"}, 0),
        ({"Retry-After": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"Retry-After": formatdate(NOW - 30, usegmt=True)}, 0),
        ({"Retry-After": "Wed, 99 Nov 2026 00:00:00 GMT"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "1e999"}, None),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_is_a_time_or_nothing(text):
    seconds = retry_after({"Retry-After": text}, NOW)
    assert seconds is None or seconds >= 0


@given(st.integers(1, 10_000), st.none() | st.floats(0, 1e300), st.integers())
def test_no_wait_is_absurd(retry, asked, seed):
    pacing = Pacing()
    wait = pacing.wait(retry, asked, random.Random(seed))
    least = 0 if asked is None else min(asked, pacing.retry_after_cap_sec)
    assert least <= wait <= max(pacing.cap_sec, least + 1)


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "again"),
    [
        (429, "", "slow down", ModelError, True),
        (429, "insufficient_quota", "pay", ModelRefusedError, False),
        (500, "", "", ModelError, True),
        (503, "", "", ModelError, True),
        (529, "", "", ModelError, True),
        (501, "", "", ModelRefusedError, False),
        (408, "", "", ModelError, True),
        (401, "", "no", ModelRefusedError, False),
        (403, "", "no", ModelRefusedError, False),
        (404, "", "no", ModelRefusedError, False),
        (400, "", "bad temperature", ModelRefusedError, False),
        (302, "", "", ModelRefusedError, False),
        (400, "context_length_exceeded", "", LimitExceededError, False),
        (400, "", "This model's maximum context length is 5 tokens", LimitExceededError, False),
        (413, "", "", LimitExceededError, False),
        (0, "context_length_exceeded", "", LimitExceededError, False),
        (0, "", "overloaded", ModelError, True),
    ],
)
def test_what_an_error_answer_means(status, code, message, kind, again):
    failed = refused("openai/x at http://h/v1", status, code, message)
    assert (type(failed.error), failed.again) == (kind, again)
    assert message in str(failed.error)
    if isinstance(failed.error, ModelError):
        assert failed.error.retryable == again
