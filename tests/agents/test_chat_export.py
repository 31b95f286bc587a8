"""The linear export of a conversation with tools, read back."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import StoreError
from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.tree import NodeStatus, Step
from ramify.edges.outbound import verifiers
from ramify.edges.outbound.records import read_messages, write_messages
from ramify.kernel.trajectory import Trajectory

text = st.text(st.characters(codec="utf-8"), max_size=20)
message = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=text,
    tool_calls=st.lists(st.builds(ToolCall, text, text, text), max_size=3).map(tuple),
    tool_call_id=st.none() | text,
    name=st.none() | text,
    reasoning=st.none() | text,
)


def path(prompt, completion) -> Trajectory:
    steps = (Step(tuple(completion)),)
    return Trajectory(1, tuple(prompt), steps, NodeStatus.SCORED, ())


@given(st.lists(message, max_size=4), st.lists(message, max_size=4))
def test_any_messages_read_back_the_same(prompt, completion):
    made = path(prompt, completion)
    record = {"prompt": write_messages(made.prompt), "info": {"rollout_id": "r", "leaf": 1}}
    record["completion"] = write_messages(made.completion)
    verifiers._compare(record, made)
    again = msgspec.json.decode(msgspec.json.encode(record))
    assert read_messages(again["prompt"]) == made.prompt


def test_a_record_that_lost_something_is_noticed():
    calls = (ToolCall("a", "bash", "{}"),)
    made = path([Message("user", "hi")], [Message("assistant", "", calls)])
    record = {"prompt": write_messages(made.prompt), "info": {"rollout_id": "r", "leaf": 1}}
    record["completion"] = [{"role": "assistant", "content": ""}]
    with pytest.raises(StoreError, match="the completion of r"):
        verifiers._compare(record, made)
