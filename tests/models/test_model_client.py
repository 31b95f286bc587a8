"""The client against a real server: whole completions, or one error; never half, never the key."""

from __future__ import annotations

import asyncio
import random
import ssl
from contextlib import asynccontextmanager
from email.utils import formatdate

import aiohttp
import pytest

from ramify.contracts.config import Sampling
from ramify.contracts.errors import (
    ConfigError,
    LimitExceededError,
    ModelError,
    ModelRefusedError,
    UsageError,
)
from ramify.contracts.messages import Message, TokenSpan, ToolCall, ToolSpec, Usage
from ramify.planes.model.client import OpenAIModel
from ramify.testing.fakecontext import FakeClock
from ramify.testing.openai_server import Fault, OpenAIServer
from ramify.testing.scripted_model import Reply, call

KEY = "sk-test-0123456789abcdef"
ASK = (Message("system", "s"), Message("user", "hi"))
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
FULL = Reply(
    "héllo",
    (ToolCall("c1", "read", '{"path": "ä"}'), ToolCall("c2", "bash", "{}")),
    "thinking",
    usage=Usage(100, 20, 40, calls=1),
    tokens=TokenSpan((1, 2), (-0.5, -0.25)),
    prompt_ids=(9, 8, 7),
)


@asynccontextmanager
async def served(script, options=None, **how):
    clock = FakeClock()
    async with OpenAIServer(script, **how) as server:
        model = OpenAIModel(
            "openai/x",
            clock=clock,
            rng=random.Random(0),
            base_url=server.base_url,
            api_key=KEY,
            **(options or {}),
        )
        try:
            yield server, model, clock
        finally:
            await model.aclose()


@BOTH
async def test_a_completion_is_whole(stream):
    prices = {"input_price": 1.0, "output_price": 10.0, "cached_price": 0.5}
    async with served([FULL], {"stream": stream, **prices}, api_key=KEY) as (server, model, _):
        answer = await model.sample(ASK, [ToolSpec("read", "d", {"type": "object"})])
    assert answer.message == Message("assistant", "héllo", FULL.tool_calls, reasoning="thinking")
    assert (answer.tokens, answer.prompt_ids) == (FULL.tokens, (9, 8, 7))
    assert (answer.finish_reason, answer.model) == ("tool_calls", "x")
    assert answer.usage == Usage(100, 20, 40, 1, pytest.approx((60 + 20 + 200) / 1e6))
    [request] = server.requests
    assert request["model"] == "x"
    assert request["tools"][0]["function"]["name"] == "read"
    assert request.get("stream_options") == ({"include_usage": True} if stream else None)


async def test_requests_say_what_was_asked_and_nothing_else():
    history = (
        *ASK,
        Message("assistant", tool_calls=FULL.tool_calls, reasoning="r"),
        Message("tool", "a", tool_call_id="c1", name="read"),
        Message("tool", "b", tool_call_id="c2", name="bash"),
    )
    params = Sampling(0.5, 0.9, 64, ("END",), logprobs=True)
    async with served(["x", "y"], {"token_ids": True}) as (server, model, _):
        await model.sample(ASK)
        await model.sample(history, (), params)
    first, second = server.requests
    assert first == {
        "model": "x",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        "return_token_ids": True,
    }
    assert second["messages"][2]["content"] is None
    assert "reasoning_content" not in second["messages"][2]
    assert [m["tool_call_id"] for m in second["messages"][3:]] == ["c1", "c2"]
    assert {k: second[k] for k in ("temperature", "top_p", "max_tokens", "stop", "logprobs")} == {
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "stop": ["END"], "logprobs": True,
    }  # fmt: skip


@BOTH
async def test_no_usage_is_no_guess(stream):
    prices = {"input_price": 1.0, "output_price": 1.0}
    async with served(["x"], {"stream": stream, **prices}, usage=False) as (_, model, _):
        assert (await model.sample(ASK)).usage == Usage(calls=1)


@pytest.mark.parametrize(
    "fault",
    [Fault("cut"), Fault("malformed"), Fault("reset"), Fault("status", 500), Fault("error"),
     Fault("status", 429), Fault("empty")],
    ids=lambda fault: f"{fault.kind}{fault.status}",
)  # fmt: skip
@BOTH
async def test_a_failure_that_passes_is_repeated(fault, stream):
    async with served(["fine"], {"stream": stream}, faults=[fault] * 3) as (server, model, clock):
        before = clock.time
        assert (await model.sample(ASK)).message.content == "fine"
        assert len(server.requests) == 4
        assert 1.5 <= clock.time - before <= 3.5


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 8),
        (formatdate(1_000_000 + 20, usegmt=True), 20, 21),
        ("31536000", 120, 121),
        ("-5", 0, 1),
        ("whenever", 0.25, 0.5),
    ],
)
async def test_retry_after_is_honoured_within_reason(header, least, most):
    fault = Fault("status", 429, {"Retry-After": header})
    async with served(["fine"], faults=[fault]) as (_, model, clock):
        before = clock.time
        await model.sample(ASK)
        assert least <= clock.time - before <= most


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("cut"), "in the middle of the answer"),
        (Fault("reset"), "the connection failed: "),
        (Fault("malformed"), "malformed JSON"),
        (Fault("status", 503, body="<html>Oops</html>"), "HTTP 503: Service Unavailable"),
        (Fault("status", 418), "HTTP 418: scripted failure"),
        (Fault("stall", seconds=5), "no answer within 0.1 s"),
        (Fault("drip", seconds=0.02), "no whole answer within 0.5 s"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
@BOTH
async def test_a_failure_that_stays_is_one_error(fault, says, stream):
    options = {"stream": stream, "max_retries": 1, "first_byte_sec": 0.1, "total_sec": 0.5}
    async with served(["fine" * 50], options, always=fault) as (server, model, _):
        with pytest.raises(ModelError, match=says) as caught:
            await model.sample(ASK)
    tries = 1 if fault.status == 418 else 2
    assert len(server.requests) == tries
    assert ("tried 2 times" in str(caught.value)) == (tries == 2)
    assert "openai/x at http://127.0.0.1" in str(caught.value)


@BOTH
async def test_a_stalled_body_is_noticed(stream):
    options = {"stream": stream, "max_retries": 0, "idle_sec": 0.1}
    async with served(["x"], options, always=Fault("drip", seconds=9)) as (_, model, _):
        with pytest.raises(ModelError, match=r"stalled for 0\.1 s"):
            await model.sample(ASK)


async def test_the_key_is_in_no_error():
    async with served(["x"], api_key="another") as (server, model, _):
        with pytest.raises(ModelRefusedError, match=r"401.*\[key\].*check the API key") as caught:
            await model.sample(ASK)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{caught.value!r}{caught.value.__cause__!r}"
    assert len(server.requests) == 1


async def test_a_context_that_is_exceeded_is_a_limit():
    async with served(["x"], context=10) as (server, model, _):
        with pytest.raises(LimitExceededError, match="maximum context length is 10") as caught:
            await model.sample((Message("user", "y" * 100),))
    assert caught.value.limit == "context"
    assert len(server.requests) == 1


@BOTH
async def test_an_answer_without_end_is_cut_off(stream):
    options = {"stream": stream, "max_body_bytes": 10_000}
    async with served(["y" * 20_000], options) as (server, model, _):
        with pytest.raises(ModelRefusedError, match="exceeds 10000 bytes"):
            await model.sample(ASK)
    assert len(server.requests) == 1


async def test_redirects_are_not_followed():
    fault = Fault("status", 307, {"Location": "http://127.0.0.1:9/steal"})
    async with served(["x"], always=fault) as (_, model, _):
        with pytest.raises(ModelRefusedError, match="HTTP 307"):
            await model.sample(ASK)


async def test_unreachable():
    model = OpenAIModel(
        "openai/x", clock=FakeClock(), rng=random.Random(0), base_url="http://127.0.0.1:1/v1"
    )
    with pytest.raises(ModelError, match=r"cannot be reached.*tried 5 times") as caught:
        await model.sample(ASK)
    assert caught.value.retryable
    await model.aclose()
    await model.aclose()
    with pytest.raises(ModelRefusedError, match="closed"):
        await model.sample(ASK)


async def test_a_certificate_that_is_not_valid_is_not_asked_again(monkeypatch):
    async def fail(self, req, traces, timeout):
        why = ssl.SSLCertVerificationError(1, "self-signed certificate")
        raise aiohttp.ClientConnectorCertificateError(req.connection_key, why)

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", fail)
    url = "https://127.0.0.1:9/v1"
    model = OpenAIModel("openai/x", clock=FakeClock(), rng=random.Random(0), base_url=url)
    with pytest.raises(ModelRefusedError, match="self-signed"):
        await model.sample(ASK)
    await model.aclose()


@BOTH
async def test_one_connection_serves_one_call_after_another(stream):
    async with served(lambda seen: "x" * 50, {"stream": stream}) as (server, model, _):
        for _ in range(5):
            await model.sample(ASK)
    assert len(server.peers) == 1


@pytest.mark.parametrize("use", [False, True])
async def test_the_environments_proxy_is_used_if_asked_for(use, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with served(["fine"], {"use_proxy": use, "max_retries": 0}) as (server, model, _):
        if use:
            with pytest.raises(ModelError, match="cannot be reached"):
                await model.sample(ASK)
        else:
            await model.sample(ASK)
    assert len(server.requests) == (not use)


async def test_cancelling_ends_the_request_at_once():
    async with served(["x"], always=Fault("stall", seconds=30)) as (_, model, _):
        task = asyncio.create_task(model.sample(ASK))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(1):
                await task


async def test_many_at_once_share_the_connections():
    def slow(seen):
        return f"to {seen.instruction}"

    async with served(slow, {"max_connections": 4}) as (server, model, _):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(model.sample((Message("user", str(n)),))) for n in range(40)]
    assert [task.result().message.content for task in tasks] == [f"to {n}" for n in range(40)]
    assert len(server.requests) == 40


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"base_url": "nonsense"}, ConfigError, "no address"),
        ({"base_url": "http://u:p@h/v1"}, ConfigError, "no user, password"),
        ({"base_url": "http://h/v1?key=1"}, ConfigError, "query"),
        ({}, UsageError, "set OPENAI_API_KEY"),
        ({"api_key": "a\nb"}, UsageError, "characters that no key has"),
        ({"base_url": "http://h", "max_retries": -1}, UsageError, "max_retries"),
        ({"base_url": "http://h", "idle_sec": 0}, UsageError, "idle_sec"),
        ({"base_url": "http://h", "input_price": 1.0}, UsageError, "together"),
        ({"base_url": "http://h", "input_price": 1.0, "output_price": -1.0}, UsageError, "prices"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options, kind, says, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(kind, match=says):
        OpenAIModel("openai/x", clock=FakeClock(), rng=random.Random(0), **options)


async def test_address_and_key_come_from_the_environment(monkeypatch):
    async with OpenAIServer([call("bash", command="ls")], api_key=KEY) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.base_url}/")
        monkeypatch.setenv("MY_KEY", KEY)
        model = OpenAIModel(
            "openai/a/b", clock=FakeClock(), rng=random.Random(0), api_key_env="MY_KEY"
        )
        answer = await model.sample(ASK)
        await model.aclose()
    assert answer.message.tool_calls[0].arguments == '{"command":"ls"}'
    assert server.requests[0]["model"] == "a/b"
