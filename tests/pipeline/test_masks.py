"""Secrets do not get into logs, however a stream is cut and however a program writes them."""

from __future__ import annotations

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.apps.pipeline.masks import Masker
from ramify.contracts.errors import ConfigError

SECRET = 'p@ss/w+rd "é" & more'
KEY = "-----BEGIN KEY-----\n" + "\n".join(f"line{n}of{n * 7919:040d}" for n in range(40)) + "\n"


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        html.escape(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        "p%40ss%2fw%2brd%20%22%c3%a9%22%20%26%20more",
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"user:" + SECRET.encode() + b"\n").decode(),
        base64.b64encode(b"a" + SECRET.encode() + b"zz").decode(),
        base64.b64encode(b"ab" + SECRET.encode() + b"z").decode(),
        repr(SECRET),
    ],
)
def test_a_secret_is_found_as_programs_write_it(written: str) -> None:
    out = Masker({"TOKEN": SECRET}).text(f"before {written} after")
    assert out.startswith("before ")
    assert out.endswith(" after")
    assert "***" in out
    # What base64 leaves at either side are characters that the secret alone does not decide.
    assert len(out) <= len("before *** after") + 12
    assert written not in out


def test_a_secret_of_many_lines_is_found_whole_by_line_and_in_wrapped_base64() -> None:
    masker = Masker({"KEY": KEY})
    assert masker.text(f"a{KEY}b") == "a***\nb"  # the value is taken without blanks at its ends
    indented = masker.text("".join(f"  > {line}\r\n" for line in KEY.splitlines()))
    assert indented == "  > ***\r\n" * len(KEY.splitlines())
    wrapped = base64.encodebytes(KEY.encode())
    left = masker.bytes(wrapped)
    assert all(line == b"***" or len(line) < 76 for line in left.splitlines())
    assert left.count(b"***") >= len(wrapped.splitlines()) - 1


def test_two_secrets_that_overlap_are_both_hidden() -> None:
    masker = Masker({"A": "abcdefgh", "B": "efghijkl", "C": "abcdefghxyz"})
    assert masker.text("-abcdefghijkl-") == "-***-"
    assert masker.text("-abcdefghxyz-abcdefgh-") == "-***-***-"


def test_an_endless_run_of_a_secret_is_given_out_as_it_comes() -> None:
    stream = Masker({"A": "aaaaaaaa"}).stream()
    out = b"".join(stream.feed(b"a" * 1000) for _ in range(50)) + stream.feed(b"b")
    assert out == b"***b"


@given(
    st.text("ab", min_size=0, max_size=60),
    st.lists(st.integers(1, 9), min_size=1, max_size=80),
    st.sampled_from([("ababab",), ("aabbaab", "abbaabbb"), ("aaaaaa", "bababb", "abaaba")]),
)
def test_where_a_stream_is_cut_changes_nothing(
    text: str, cuts: list[int], secrets: tuple[str, ...]
) -> None:
    masker = Masker({str(n): secret for n, secret in enumerate(secrets)})
    data, pieces, at = text.encode(), [], 0
    for cut in [*cuts, len(data)]:
        pieces.append(data[at : at + cut])
        at += cut
    stream = masker.stream()
    out = b"".join(map(stream.feed, pieces)) + stream.close()
    assert out == masker.bytes(data)
    assert not any(secret.encode() in out for secret in secrets)
    if not any(secret in text for secret in secrets):
        assert out == data


@given(st.binary(max_size=400), st.integers(1, 50))
def test_what_is_no_secret_stays_byte_for_byte(data: bytes, size: int) -> None:
    stream = Masker({"A": "hunter2-hunter2"}).stream()
    pieces = [data[n : n + size] for n in range(0, len(data), size)]
    assert b"".join(map(stream.feed, pieces)) + stream.close() == data


def test_little_is_held_back() -> None:
    stream = Masker({"A": "hunter2-hunter2"}).stream()
    assert stream.feed(b"all good\n") == b"all good\n"
    assert stream.feed(b"the hunter") == b"the "
    assert stream.feed(b" came") == b"hunter came"


@pytest.mark.parametrize(
    ("value", "word"), [("", "0 bytes"), ("abc12", "5 "), ("x" * 20000, "at most")]
)
def test_a_value_that_cannot_be_masked_is_refused(value: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        Masker({"TOKEN": value})
    assert caught.value.field == "secret TOKEN"
