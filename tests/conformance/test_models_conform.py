"""The model suite against the client (streaming or not) and the scripted model, and its bite."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import asynccontextmanager

import msgspec
import pytest

from ramify.contracts.errors import LimitExceededError, ModelError
from ramify.contracts.messages import Message, TokenSpan, ToolCall
from ramify.planes.model.client import OpenAIModel
from ramify.testing.check import Check, ConformanceError
from ramify.testing.conformance_model import MODEL_CHECKS, ModelBench, ModelScene
from ramify.testing.context import RealClock
from ramify.testing.openai_server import Fault, OpenAIServer
from ramify.testing.scripted_model import ScriptedModel, Seen, Turn, call


def looks(seen: Seen) -> Turn:
    return "A wall." if seen.answers else [call("look"), call("look")]


async def sleeps(seen: Seen) -> Turn:
    await asyncio.sleep(30)
    return "late"


SCRIPTS = {"says": lambda seen: "A wall.", "calls": looks, "fails": [], "slow": [sleeps]}


def client(stream: bool) -> Mapping[str, ModelScene]:
    def scene(script, **how) -> ModelScene:
        @asynccontextmanager
        async def opened():
            async with OpenAIServer(script, **how) as server:
                model = OpenAIModel(
                    "openai/x",
                    clock=RealClock(),
                    rng=random.Random(0),
                    base_url=server.base_url,
                    stream=stream,
                    max_retries=1,
                )
                yield model
                await model.aclose()

        return opened

    return {
        **{name: scene(SCRIPTS[name]) for name in ("says", "calls", "slow")},
        "fails": scene(SCRIPTS["says"], always=Fault("cut")),
        "full": scene(SCRIPTS["says"], context=1000),
    }


def scripted() -> Mapping[str, ModelScene]:
    def scene(script, *failures: Exception) -> ModelScene:
        @asynccontextmanager
        async def opened():
            yield ScriptedModel(script, failures=failures)

        return opened

    return {
        **{name: scene(SCRIPTS[name]) for name in ("says", "calls", "slow")},
        "fails": scene([], ModelError("broken")),
        "full": scene([], LimitExceededError("context", "too long")),
    }


MODELS = {"client": client(False), "client-stream": client(True), "scripted": scripted()}


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.name)
@pytest.mark.parametrize("model", MODELS)
async def test_model(model: str, check: Check[ModelBench]) -> None:
    await check.run(ModelBench(MODELS[model]))


class Careless(ScriptedModel):
    """Breaks the contract in one way."""

    def __init__(self, how: str) -> None:
        super().__init__(looks if how == "ids" else SCRIPTS["says"])
        self.how = how

    @property
    def name(self) -> str:
        return "model" if self.how == "name" else "a/b"

    async def sample(self, messages, tools=(), params=None):
        answer = await super().sample(messages, tools, params)
        change = msgspec.structs.replace
        match self.how:
            case "half":
                return change(answer, finish_reason="")
            case "usage":
                return change(answer, usage=change(answer.usage, calls=0))
            case "tokens":
                return change(answer, tokens=TokenSpan((1, 2), (0.5,)))
            case "role":
                return change(answer, message=Message("user", "x"))
            case "ids":
                calls = tuple(
                    ToolCall("same", c.name, c.arguments) for c in answer.message.tool_calls
                )
                return change(answer, message=change(answer.message, tool_calls=calls))
            case _:
                return answer


@pytest.mark.parametrize(
    ("how", "scene"),
    [("half", "says"), ("usage", "says"), ("tokens", "says"), ("role", "says"), ("name", "says"),
     ("ids", "calls"), ("answers", "fails"), ("answers", "full"), ("answers", "slow")],
)  # fmt: skip
async def test_a_careless_model_is_noticed(how: str, scene: str) -> None:
    @asynccontextmanager
    async def opened():
        yield Careless(how)

    broken = 0
    for check in MODEL_CHECKS:
        if check.needs == (scene,):
            try:
                await check.run(ModelBench({scene: opened}))
            except ConformanceError:
                broken += 1
    assert broken
