"""A scripted OpenAI-compatible server, on a real socket, that can also misbehave.

    async with OpenAIServer({"README": script}, faults=[Fault("status", status=429)]) as server:
        model = OpenAIModel("openai/x", base_url=server.base_url, ...)

Scripts are those of `ScriptedModel`; requests are kept in `server.requests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import msgspec
from aiohttp import web

from ramify.contracts.messages import Message, ToolCall
from ramify.contracts.model import Completion
from ramify.testing.scripted_model import Script, ScriptError, next_reply


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which an answer goes wrong.

    Kinds: `status` (an error answer, with `headers` and `body`), `cut` (the connection ends in the
    middle), `malformed` (what is no JSON), `stall` (no header comes for `seconds`), `drip` (the
    answer comes byte by byte, `seconds` apart), `reset` (the connection ends without an answer),
    `error` (an `error` member in place of an answer), `empty` (no choices).
    """

    kind: Literal["status", "cut", "malformed", "stall", "drip", "reset", "error", "empty"]
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Any = None
    seconds: float = 0.05


class OpenAIServer:
    """Serves `/v1/chat/completions` on 127.0.0.1 from a script.

    Args:
        script: as for ScriptedModel.
        faults: what goes wrong with the first requests, in order; None answers properly.
        always: what goes wrong with every request after those.
        api_key: if set, another key gets 401, whose text repeats what was sent.
        context: if set, a request of more tokens (four characters each) gets 400.
        usage: whether answers tell what was used.
        piece: characters of content and arguments per chunk of a stream.

    Attributes:
        requests: every request's body, in order, refused ones too.
        headers: and its headers.
        peers: where connections came from.
    """

    def __init__(
        self,
        script: Script | Mapping[str, Script],
        *,
        faults: Sequence[Fault | None] = (),
        always: Fault | None = None,
        api_key: str | None = None,
        context: int | None = None,
        usage: bool = True,
        piece: int = 7,
    ) -> None:
        self._script, self._faults, self._always = script, list(faults), always
        self._api_key, self._context, self._usage, self._piece = api_key, context, usage, piece
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.peers: set[tuple[str, int]] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        """Where it is, up to and including `/v1`."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if request.transport is not None:
            self.peers.add(request.transport.get_extra_info("peername"))
        given = request.headers.get("Authorization", "")
        if self._api_key is not None and given != f"Bearer {self._api_key}":
            text = f"Incorrect API key provided: {given.removeprefix('Bearer ')}"
            return _error(401, "invalid_api_key", text)
        fault = self._faults.pop(0) if self._faults else self._always
        if fault is not None and fault.kind in ("status", "reset", "stall", "error", "empty"):
            return await _failed(request, fault)
        messages = [_message(record) for record in body["messages"]]
        size = sum(len(message.content) for message in messages) // 4
        if self._context is not None and size > self._context:
            text = f"This model's maximum context length is {self._context} tokens, not {size}."
            return _error(400, "context_length_exceeded", text)
        try:
            reply = await next_reply(self._script, messages)
        except ScriptError as error:
            return _error(400, "script", str(error))
        answer = reply.completion(messages, body["model"])
        if body.get("stream"):
            return await self._stream(request, body, answer, fault)
        data = msgspec.json.encode(self._whole(answer))
        return await _sent(request, "application/json", [data], fault)

    def _whole(self, answer: Completion) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.message.content or None}
        if answer.message.reasoning is not None:
            message["reasoning_content"] = answer.message.reasoning
        if answer.message.tool_calls:
            message["tool_calls"] = [_call(call) for call in answer.message.tool_calls]
        choice: dict[str, Any] = {
            "index": 0, "message": message, "finish_reason": answer.finish_reason,
        }  # fmt: skip
        if answer.tokens is not None:
            choice |= _tokens(answer)
        record = {"id": "scripted", "object": "chat.completion", "model": answer.model}
        prompt = {"prompt_token_ids": list(answer.prompt_ids)} if answer.prompt_ids else {}
        return {**record, **prompt, "choices": [choice], **self._used(answer)}

    async def _stream(
        self, request: web.Request, body: dict[str, Any], answer: Completion, fault: Fault | None
    ) -> web.StreamResponse:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if answer.message.reasoning:
            deltas += [{"reasoning_content": t} for t in self._pieces(answer.message.reasoning)]
        deltas += [{"content": text} for text in self._pieces(answer.message.content)]
        for index, call in enumerate(answer.message.tool_calls):
            head = {**_call(call), "index": index}
            head["function"] = {"name": call.name, "arguments": ""}
            deltas.append({"tool_calls": [head]})
            for text in self._pieces(call.arguments):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": answer.finish_reason}
        if answer.tokens is not None:
            last |= _tokens(answer)
        record = {"object": "chat.completion.chunk", "model": answer.model}
        chunks = [{**record, "choices": [choice]} for choice in [*choices, last]]
        if answer.prompt_ids:
            chunks[0]["prompt_token_ids"] = list(answer.prompt_ids)
        if body.get("stream_options", {}).get("include_usage"):
            chunks.append({**record, "choices": [], **self._used(answer)})
        events = [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]
        return await _sent(request, "text/event-stream", [*events, b"data: [DONE]\n\n"], fault)

    def _pieces(self, text: str) -> list[str]:
        return [text[i : i + self._piece] for i in range(0, len(text), self._piece)]

    def _used(self, answer: Completion) -> dict[str, Any]:
        if not self._usage:
            return {}
        used = answer.usage
        return {
            "usage": {
                "prompt_tokens": used.input_tokens,
                "completion_tokens": used.output_tokens,
                "total_tokens": used.input_tokens + used.output_tokens,
                "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
            }
        }


async def _sent(
    request: web.Request, kind: str, parts: Sequence[bytes], fault: Fault | None
) -> web.StreamResponse:
    """Send the parts of an answer, as whole as the fault leaves them."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    response.enable_chunked_encoding()
    await response.prepare(request)
    data = b"".join(parts)
    match fault:
        case Fault(kind="cut"):
            await response.write(data[: len(data) // 2])
            _hang_up(request)
            return response
        case Fault(kind="malformed"):
            await response.write(data.replace(b'"choices"', b'"choi'))
        case Fault(kind="drip", seconds=seconds):
            with suppress(ConnectionError):  # nobody waits for an answer that drips
                for place in range(len(data)):
                    await response.write(data[place : place + 1])
                    await asyncio.sleep(seconds)
        case _:
            for part in parts:
                await response.write(part)
            await asyncio.sleep(0.005)  # the end of the body comes by itself, as it often does
    await response.write_eof()
    return response


async def _failed(request: web.Request, fault: Fault) -> web.StreamResponse:
    match fault.kind:
        case "reset":
            _hang_up(request)
        case "stall":
            await asyncio.sleep(fault.seconds)
        case "error":
            return web.json_response({"error": {"message": "overloaded", "code": "overloaded"}})
        case "empty":
            return web.json_response({"choices": []})
        case _:
            pass
    if isinstance(fault.body, str):
        return web.Response(status=fault.status, text=fault.body, headers=fault.headers)
    body = fault.body or {"error": {"message": "scripted failure", "code": "scripted"}}
    return web.json_response(body, status=fault.status, headers=fault.headers)


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tokens(answer: Completion) -> dict[str, Any]:
    tokens = answer.tokens
    if tokens is None:
        return {}
    scored = [{"token": "t", "logprob": value, "bytes": None} for value in tokens.logprobs]
    found: dict[str, Any] = {"logprobs": {"content": scored}}
    return found | ({"token_ids": list(tokens.ids)} if tokens.ids else {})


def _message(record: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in record.get("tool_calls") or ()
    )
    return Message(
        record["role"],
        record.get("content") or "",
        calls,
        record.get("tool_call_id"),
        record.get("name"),
    )
