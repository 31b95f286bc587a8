"""The conformance suite of the contract Model.

A model cannot be told what to answer, so the caller brings scenes, each of which opens a fresh
model that answers in a known way:

    bench = ModelBench({"says": says, "calls": calls, "fails": fails, "slow": slow, "full": full})
    await check.run(bench)   # for each check of MODEL_CHECKS

Scenes: `says` (answers in words), `calls` (calls the tool `look` that it is offered), `fails` (its
endpoint is broken), `slow` (answers after ten seconds or more), `full` (the messages exceed its
context). A check whose scene is not brought is skipped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.errors import LimitExceededError, ModelError
from ramify.contracts.messages import Message, ToolSpec
from ramify.contracts.model import Completion, Model
from ramify.testing.check import Check, ConformanceError, check, equal, raises, require, within

ModelScene = Callable[[], AbstractAsyncContextManager[Model]]

_ASK = (Message("system", "Be brief."), Message("user", "Look around."))
_LOOK = ToolSpec("look", "Look around.", {"type": "object", "properties": {}, "required": []})


@dataclass(frozen=True, slots=True)
class ModelBench:
    """A model under test: its scenes by name."""

    scenes: Mapping[str, ModelScene]

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`. Needs: the names of scenes."""
        if need not in ("says", "calls", "fails", "slow", "full"):
            raise ValueError(f"unknown scene {need!r}; known: says, calls, fails, slow, full")
        return None if need in self.scenes else f"there is no scene {need!r} for this model"


def _whole(answer: Completion) -> None:
    """What holds for every completion."""
    equal(answer.message.role, "assistant", "role of the answer")
    require(bool(answer.finish_reason), "the finish reason must not be empty")
    equal(answer.usage.calls, 1, "calls in the usage of one completion")
    used = answer.usage
    require(min(used.input_tokens, used.output_tokens, used.cached_tokens) >= 0, f"usage {used}")
    require(used.cached_tokens <= used.input_tokens, f"more cached than read: {used}")
    if answer.tokens is not None and answer.tokens.ids and answer.tokens.logprobs:
        equal(len(answer.tokens.logprobs), len(answer.tokens.ids), "number of log-probabilities")
    again = msgspec.json.decode(msgspec.json.encode(answer), type=Completion)
    equal(again, answer, "a completion written and read again")


@check("says")
async def _answer_is_whole(bench: ModelBench) -> None:
    """sample returns a whole completion with its usage."""
    async with bench.scenes["says"]() as model:
        answer = await model.sample(_ASK)
        _whole(answer)
        require(bool(answer.message.content), "the scene `says` must answer in words")
        equal(answer.message.tool_calls, (), "tool calls where no tool is offered")


@check("says")
async def _name_is_provider_and_name(bench: ModelBench) -> None:
    """name is `provider/name`."""
    async with bench.scenes["says"]() as model:
        provider, slash, name = model.name.partition("/")
        require(bool(provider and slash and name), f"{model.name!r} is not provider/name")


@check("says")
async def _params_are_taken(bench: ModelBench) -> None:
    """Sampling parameters are taken; the messages given are left as they are."""
    async with bench.scenes["says"]() as model:
        given = list(_ASK)
        _whole(await model.sample(given, (), Sampling(temperature=0.5, max_tokens=64)))
        equal(given, list(_ASK), "the messages, after the call")


@check("calls")
async def _tool_calls_are_calls(bench: ModelBench) -> None:
    """Tool calls have an id, a name that was offered, and JSON text; they are answered by id."""
    async with bench.scenes["calls"]() as model:
        answer = await model.sample(_ASK, [_LOOK])
        _whole(answer)
        calls = answer.message.tool_calls
        require(bool(calls), "the scene `calls` must call its tool")
        equal(len({made.id for made in calls}), len(calls), "number of different ids")
        for made in calls:
            require(bool(made.id), "a call must have an id")
            equal(made.name, "look", "name of the tool")
            given: object = json.loads(made.arguments)
            require(isinstance(given, dict), f"{made.arguments} is no JSON object")
        answers = [Message("tool", "a wall", tool_call_id=made.id, name="look") for made in calls]
        _whole(await model.sample([*_ASK, answer.message, *answers], [_LOOK]))


@check("says")
async def _calls_side_by_side(bench: ModelBench) -> None:
    """One model serves many calls at once."""
    async with bench.scenes["says"]() as model:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(model.sample(_ASK)) for _ in range(16)]
        for task in tasks:
            _whole(task.result())


@check("fails")
async def _failure_is_a_model_error(bench: ModelBench) -> None:
    """A broken endpoint raises ModelError, which says something; never half an answer."""
    async with bench.scenes["fails"]() as model:
        try:
            answer = await model.sample(_ASK)
        except ModelError as error:
            require(bool(str(error)), "the error must say what happened")
        else:
            raise ConformanceError(f"a broken endpoint answered {answer}")


@check("full")
async def _full_context_is_a_limit(bench: ModelBench) -> None:
    """Messages that exceed the context raise LimitExceededError naming `context`."""
    long: Sequence[Message] = (Message("user", "word " * 200_000),)
    async with bench.scenes["full"]() as model:
        with raises(LimitExceededError, doing="messages that exceed the context"):
            try:
                await model.sample(long)
            except LimitExceededError as error:
                equal(error.limit, "context", "the limit's name")
                raise


@check("slow")
async def _cancelled_at_once(bench: ModelBench) -> None:
    """Cancelling a call ends it at once, and the model serves on."""
    async with bench.scenes["slow"]() as model:
        task = asyncio.create_task(model.sample(_ASK))
        await asyncio.sleep(0.2)
        require(not task.done(), "the scene `slow` must still be running after 0.2 s")
        with within(1, "cancelling"):
            task.cancel()
            await asyncio.wait({task})
        require(task.cancelled(), "the cancellation must come out of sample()")


@check("says")
async def _aclose_is_idempotent(bench: ModelBench) -> None:
    """aclose can be called again, and before the first call."""
    async with bench.scenes["says"]() as model:
        await model.aclose()
        await model.aclose()


MODEL_CHECKS: tuple[Check[ModelBench], ...] = (
    _answer_is_whole,
    _name_is_provider_and_name,
    _params_are_taken,
    _tool_calls_are_calls,
    _calls_side_by_side,
    _failure_is_a_model_error,
    _full_context_is_a_limit,
    _cancelled_at_once,
    _aclose_is_idempotent,
)
"""Every check of the contract Model."""
