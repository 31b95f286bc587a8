"""Server-sent events, however the bytes are cut; answers put together from pieces."""

from __future__ import annotations

import itertools
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.messages import TokenSpan, ToolCall, Usage
from ramify.planes.model.stream import EventStream
from ramify.planes.model.wire import Assembler, WireError, read_piece

line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)


@given(
    st.lists(st.lists(line, min_size=1, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_events_do_not_depend_on_how_the_bytes_are_cut(events, end, sizes):
    text = "".join(
        f": a comment{end}event: x{end}" + "".join(f"data: {part}{end}" for part in event) + end
        for event in events
    )
    data, found, place = text.encode(), [], 0
    stream = EventStream()
    for size in itertools.cycle(sizes):
        if place >= len(data):
            break
        found += stream.feed(data[place : place + size])
        place += size
    assert found + stream.end() == ["\n".join(event).encode() for event in events]


def test_an_event_still_open_at_the_end_is_given_at_the_end():
    stream = EventStream()
    assert stream.feed(b"data:a\ndata: b") == []
    assert stream.end() == [b"a\nb"]
    assert stream.end() == []


def pieces(*chunks, whole=False):
    answer = Assembler()
    for chunk in chunks:
        answer.add(read_piece(msgspec.json.encode(chunk)))
    return answer.completion(whole)


def delta(finish=None, **said):
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


def tool(index=None, id=None, name=None, arguments=None):
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


def test_a_streamed_answer_is_put_together():
    answer = pieces(
        {**delta(role="assistant", content=""), "prompt_token_ids": [1, 2, 3]},
        delta(reasoning_content="hm"),
        delta(reasoning_content="m"),
        delta(content="Hello "),
        delta(content="world"),
        {**delta("stop"), "model": "m-1"},
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        },
    )
    assert (answer.message.content, answer.message.reasoning) == ("Hello world", "hmm")
    assert (answer.finish_reason, answer.model, answer.prompt_ids) == ("stop", "m-1", (1, 2, 3))
    assert answer.usage == Usage(5, 2, 4, calls=1)


CALLS = (ToolCall("a", "read", '{"x":1}'), ToolCall("b", "bash", "{}"))


@pytest.mark.parametrize(
    "chunks",
    [
        [tool(0, "a", "read", ""), tool(0, arguments='{"x"'), tool(0, arguments=":1}"),
         tool(1, "b", "bash", "{}")],
        [tool(0, "a", "read", ""), tool(1, "b", "bash", "{}"), tool(0, arguments='{"x":1}')],
        [tool(0, "a", "read", '{"x":1}'), tool(0, "b", "bash", "{}")],
        [tool(None, "a", "read", '{"x":1}'), tool(None, "b", "bash", "{"), tool(arguments="}")],
    ],
    ids=["in order", "interleaved", "all numbered 0", "not numbered"],
)  # fmt: skip
def test_tool_calls_in_pieces(chunks):
    answer = pieces(*(delta(tool_calls=[chunk]) for chunk in chunks), delta("tool_calls"))
    assert answer.message.tool_calls == CALLS


def test_a_whole_answer_needs_no_mark_of_its_end():
    message = {
        "content": [{"type": "text", "text": "hi"}],
        "tool_calls": [tool(None, "a", "read", {"x": 1}), tool(None, None, "bash", "{}")],
    }
    answer = pieces({"choices": [{"message": message}]}, whole=True)
    assert answer.message.content == "hi"
    assert answer.message.tool_calls == (CALLS[0], ToolCall("call_1", "bash", "{}"))
    assert (answer.finish_reason, answer.usage) == ("tool_calls", Usage(calls=1))


@pytest.mark.parametrize(
    ("choice", "tokens"),
    [
        ({"token_ids": [7, 8], "logprobs": {"content": [{"logprob": -1}, {"logprob": -2}]}},
         TokenSpan((7, 8), (-1, -2))),
        ({"token_ids": [7, 8], "logprobs": {"content": [{"logprob": -1}]}}, TokenSpan((7, 8))),
        ({"logprobs": {"content": [{"logprob": -1, "token": "a"}]}}, TokenSpan((), (-1,))),
        ({"logprobs": {"content": [{"logprob": -1, "token": "token_id:9"}]}},
         TokenSpan((9,), (-1,))),
        ({"logprobs": None}, None),
    ],
    ids=["both", "lengths differ", "only log-probabilities", "ids in the tokens", "none"],
)  # fmt: skip
def test_tokens_are_what_the_endpoint_gave(choice, tokens):
    whole = {"message": {"content": "x"}, "finish_reason": "stop", **choice}
    assert pieces({"choices": [whole]}, whole=True).tokens == tokens


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([], "no choices"),
        ([{"choices": []}], "no choices"),
        ([delta(content="half")], "cut before the answer's end"),
        ([delta(tool_calls=[tool(0, "a", None, "{}")]), delta("stop")], "without a name"),
    ],
)
def test_what_is_not_a_whole_answer_is_refused(chunks, says):
    with pytest.raises(WireError, match=says):
        pieces(*chunks)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_piece_or_a_wire_error(data):
    with suppress(WireError):
        read_piece(data)
