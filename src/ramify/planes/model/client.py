"""The client of OpenAI-compatible chat completions."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.context import Clock
from ramify.contracts.errors import ConfigError, ModelError, ModelRefusedError, UsageError
from ramify.contracts.messages import Message, ToolSpec, Usage
from ramify.contracts.model import Completion
from ramify.contracts.sandbox import MIB
from ramify.planes.model.retry import Pacing, RequestError, refused, retry_after
from ramify.planes.model.stream import EventStream
from ramify.planes.model.wire import (
    Assembler,
    Dialect,
    WireError,
    error_text,
    read_piece,
    request_body,
)

_PUBLIC = "https://api.openai.com/v1"
_KEY_VARIABLE, _URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_ERROR_BODY = 64 * 1024
_LINGER_SEC = 0.25
_SAID = 300
"""Characters of an endpoint's own words that an error repeats."""


@dataclass(frozen=True, slots=True)
class _Deadlines:
    connect: float
    first_byte: float
    idle: float
    total: float


@dataclass(frozen=True, slots=True)
class _Prices:
    """US dollars per million tokens."""

    input: float
    output: float
    cached: float

    def cost(self, usage: Usage) -> float:
        fresh = max(0, usage.input_tokens - usage.cached_tokens)
        dollars = fresh * self.input + usage.cached_tokens * self.cached
        return (dollars + usage.output_tokens * self.output) / 1_000_000


class OpenAIModel:
    """Chat completions of an OpenAI-compatible endpoint, over one pool of connections.

    A request that fails for a reason that may pass (no connection, 429, 5xx, an answer that is
    cut or malformed) is repeated, no sooner than `Retry-After` says. The API key appears in no
    error. Redirects are not followed: they would carry the key elsewhere.

    Args:
        name: `provider/name`; the part after the first slash is the endpoint's own name for it.
        clock, rng: time for waits, randomness for their jitter.
        base_url: up to and including `/v1`; by default OPENAI_BASE_URL, else OpenAI's address.
        api_key: sent as a bearer token; by default the value of the variable `api_key_env`.
        api_key_env: name of the environment variable that holds the key.
        stream: ask for a stream, so that a stalled answer is noticed after `idle_sec`.
        token_ids: ask for token ids (vLLM and what is compatible with it).
        send_reasoning: give the reasoning of earlier answers back to the endpoint.
        max_tokens_field: how the endpoint calls the limit on an answer's tokens.
        max_retries: repeats of a request that failed.
        retry_after_cap_sec: longest wait that an endpoint can ask for.
        max_connections: connections at once.
        use_proxy: go through the proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name.
        connect_sec, first_byte_sec, idle_sec, total_sec: deadlines of one request.
        max_body_bytes: the largest answer taken.
        input_price, output_price, cached_price: US dollars per million tokens; without them the
            cost is not known.

    Raises:
        UsageError: no key for OpenAI's own address, or a value that cannot be used.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        rng: random.Random,
        base_url: str | None = None,
        api_key: str | None = None,
        api_key_env: str = _KEY_VARIABLE,
        stream: bool = False,
        token_ids: bool = False,
        send_reasoning: bool = False,
        max_tokens_field: str | None = None,
        max_retries: int = 4,
        retry_after_cap_sec: float = 120.0,
        max_connections: int = 256,
        use_proxy: bool = False,
        connect_sec: float = 10.0,
        first_byte_sec: float = 600.0,
        idle_sec: float = 120.0,
        total_sec: float = 1800.0,
        max_body_bytes: int = 32 * MIB,
        input_price: float | None = None,
        output_price: float | None = None,
        cached_price: float | None = None,
    ) -> None:
        self._name, self._clock, self._rng = name, clock, rng
        url = _checked_url(base_url or os.environ.get(_URL_VARIABLE) or _PUBLIC)
        self._key = api_key or os.environ.get(api_key_env) or ""
        if not self._key and url == _PUBLIC:
            raise UsageError(
                f"{name} needs an API key: set {api_key_env}, or give --base-url for another "
                "endpoint"
            )
        if re.search(r"[^\x21-\x7e]", self._key):
            raise UsageError(f"the API key in {api_key_env} holds characters that no key has")
        for option, value in (
            ("max_retries", max_retries + 1),
            ("retry_after_cap_sec", retry_after_cap_sec),
            ("max_connections", max_connections),
            ("connect_sec", connect_sec),
            ("first_byte_sec", first_byte_sec),
            ("idle_sec", idle_sec),
            ("total_sec", total_sec),
            ("max_body_bytes", max_body_bytes),
        ):
            if not value > 0:
                raise UsageError(f"option {option} of {name} is too small")
        self._url = f"{url}/chat/completions"
        self._where = f"{name} at {url}"
        field = "max_completion_tokens" if url == _PUBLIC else "max_tokens"
        self._dialect = Dialect(stream, token_ids, send_reasoning, max_tokens_field or field)
        self._pacing = Pacing(max_retries, retry_after_cap_sec=retry_after_cap_sec)
        self._deadlines = _Deadlines(connect_sec, first_byte_sec, idle_sec, total_sec)
        self._max_connections, self._max_body = max_connections, max_body_bytes
        self._use_proxy = use_proxy
        self._prices = _checked_prices(input_price, output_price, cached_price)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """`provider/name`."""
        return self._name

    async def sample(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        params: Sampling | None = None,
    ) -> Completion:
        """Sample one completion.

        Raises:
            ModelError: the endpoint failed, after all repeats; ModelRefusedError where it refuses
                the request as it is (key, name, parameters).
            LimitExceededError: `context`, the messages exceed what the model can take.
        """
        endpoint_name = self._name.partition("/")[2] or self._name
        body = request_body(endpoint_name, messages, tools, params or Sampling(), self._dialect)
        tried = 0
        while True:
            tried += 1
            try:
                return self._priced(await self._request(body))
            except RequestError as failed:
                if failed.again and tried <= self._pacing.max_retries:
                    wait = self._pacing.wait(tried, failed.retry_after, self._rng)
                else:
                    raise _told(failed, tried) from failed.__cause__
            await self._clock.sleep(wait)

    async def aclose(self) -> None:
        """Close connections. Idempotent; later calls of `sample` are refused."""
        self._closed = True
        if (session := self._session) is not None:
            self._session = None
            await session.close()

    async def _request(self, body: bytes) -> Completion:
        """One request, within its deadlines. Raises RequestError."""
        times = self._deadlines
        total = asyncio.timeout(times.total)
        try:
            async with total:
                return await self._exchange(body)
        except TimeoutError:
            if not total.expired():
                raise
            raise self._broken(f"no whole answer within {times.total:g} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            text = f"{self._where}: its certificate is not valid: {error.certificate_error}"
            raise RequestError(ModelRefusedError(self._clean(text)), again=False) from None
        except aiohttp.ClientConnectorError as error:
            raise self._broken(f"cannot be reached: {error.os_error.strerror or error}") from error
        except aiohttp.ClientPayloadError as error:
            raise self._broken("the connection ended in the middle of the answer") from error
        except (aiohttp.ClientError, OSError) as error:
            why = str(error) or type(error).__name__
            raise self._broken(f"the connection failed: {why}") from error

    async def _exchange(self, body: bytes) -> Completion:
        first_byte = asyncio.timeout(self._deadlines.first_byte)
        try:
            async with first_byte:
                response = await self._open().post(
                    self._url, data=body, headers=self._headers(), allow_redirects=False
                )
        except TimeoutError as error:
            if not first_byte.expired():
                # aiohttp's own: it could not connect in time
                raise self._broken(str(error) or "no connection in time") from error
            seconds = self._deadlines.first_byte
            raise self._broken(f"no answer within {seconds:g} s") from None
        async with response:
            if response.status != 200:
                raise await self._refused(response)
            if "text/event-stream" in response.headers.get("Content-Type", ""):
                return await self._streamed(response)
            return await self._whole(response)

    async def _whole(self, response: aiohttp.ClientResponse) -> Completion:
        data = bytearray()

        def take(chunk: bytes) -> bool:
            data.extend(chunk)
            return True

        await self._read(response, self._max_body, take)
        answer = Assembler()
        self._add(answer, bytes(data))
        return self._understood(answer, whole=True)

    async def _streamed(self, response: aiohttp.ClientResponse) -> Completion:
        events, answer = EventStream(), Assembler()
        done = False

        def take(chunk: bytes) -> bool:
            nonlocal done
            done = self._take(events.feed(chunk), answer)
            return not done

        await self._read(response, self._max_body, take)
        if done:
            # The body's end follows at once; a connection that was read to its end is used again.
            with suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(_LINGER_SEC):
                    while await response.content.readany():
                        pass
        else:
            self._take(events.end(), answer)
        return self._understood(answer, whole=False)

    async def _read(
        self, response: aiohttp.ClientResponse, limit: int, take: Callable[[bytes], bool]
    ) -> None:
        """Give the body to `take` until it has enough. Raises RequestError."""
        size, idle = 0, self._deadlines.idle
        while True:
            scope = asyncio.timeout(idle)
            try:
                async with scope:
                    chunk = await response.content.readany()
            except TimeoutError:
                if not scope.expired():
                    raise
                raise self._broken(f"the answer stalled for {idle:g} s") from None
            size += len(chunk)
            if size > limit:
                text = f"{self._where}: the answer exceeds {limit} bytes"
                raise RequestError(ModelRefusedError(text), again=False)
            if not chunk or not take(chunk):
                return

    def _take(self, events: Sequence[bytes], answer: Assembler) -> bool:
        """Add events to the answer; whether the stream said that it is done."""
        for event in events:
            if event.strip() == b"[DONE]":
                return True
            self._add(answer, event)
        return False

    def _understood(self, answer: Assembler, whole: bool) -> Completion:
        try:
            return answer.completion(whole)
        except WireError as error:
            raise self._broken(str(error)) from None

    def _add(self, answer: Assembler, data: bytes) -> None:
        try:
            piece = read_piece(data)
        except WireError as error:
            raise self._broken(str(error)) from None
        if piece.error:
            code, message = error_text(piece.error)
            raise refused(self._where, 0, code, self._clean(message))
        answer.add(piece)

    async def _refused(self, response: aiohttp.ClientResponse) -> RequestError:
        head = bytearray()

        def take(chunk: bytes) -> bool:
            head.extend(chunk)
            return len(head) < _ERROR_BODY

        await self._read(response, self._max_body, take)
        code, message = _error_of(bytes(head))
        message = message or _phrase(response.status)
        asked = retry_after(response.headers, self._clock.now())
        return refused(self._where, response.status, code, self._clean(message), asked)

    def _broken(self, what: str) -> RequestError:
        return RequestError(ModelError(f"{self._where}: {self._clean(what)}"))

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        line = " ".join(text.split())
        return line if len(line) <= _SAID else f"{line[:_SAID]}..."

    def _priced(self, answer: Completion) -> Completion:
        known = answer.usage.input_tokens or answer.usage.output_tokens
        if self._prices is None or not known:
            return answer
        cost = self._prices.cost(answer.usage)
        usage = msgspec.structs.replace(answer.usage, cost_usd=cost)
        return msgspec.structs.replace(answer, usage=usage)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RequestError(ModelRefusedError(f"{self._name} is closed"), again=False)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._deadlines.connect),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=self._use_proxy,
            )
        return self._session


def _told(failed: RequestError, tried: int) -> Exception:
    """The error for the caller, which says how often it was tried."""
    if tried == 1:
        return failed.error
    return ModelError(f"{failed.error} (tried {tried} times)") if failed.again else failed.error


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is no address of an endpoint; write e.g. http://127.0.0.1:8000/v1",
            field="base_url",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "must hold no user, password, query or fragment; the key goes into the variable that "
            "api_key_env names",
            field="base_url",
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _checked_prices(
    input_price: float | None, output_price: float | None, cached_price: float | None
) -> _Prices | None:
    if input_price is None and output_price is None and cached_price is None:
        return None
    if input_price is None or output_price is None:
        raise UsageError("give input_price and output_price together, in dollars per million")
    prices = _Prices(
        input_price, output_price, input_price if cached_price is None else cached_price
    )
    if not all(0 <= price < float("inf") for price in (prices.input, prices.output, prices.cached)):
        raise UsageError("prices are dollars per million tokens, 0 or more")
    return prices


def _error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an error answer, whatever it is."""
    text = partial(body.decode, errors="replace")
    try:
        answer: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", "" if body.lstrip()[:1] == b"<" else text()  # a proxy's page says nothing
    if isinstance(answer, dict):
        code, message = error_text(answer.get("error") or answer)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] (foreign JSON)
        return code, message or text()
    return "", text()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
