"""What a failed request means, and when to try again."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from ramify.contracts.errors import (
    LimitExceededError,
    ModelError,
    ModelRefusedError,
    RamifyError,
)

_AGAIN = frozenset({408, 409, 425, 429})
_NEVER = frozenset({501, 505})
_CONTEXT = re.compile(
    r"context[_ ]length|context window|maximum context|prompt is too long|too many input tokens",
    re.IGNORECASE,
)


class RequestError(Exception):
    """One request failed.

    Attributes:
        error: what the caller is told if no other request succeeds.
        again: whether another request may do better.
        retry_after: seconds that the endpoint asks to wait, if it does.
    """

    def __init__(
        self, error: RamifyError, again: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(str(error))
        self.error, self.again, self.retry_after = error, again, retry_after


@dataclass(frozen=True, slots=True)
class Pacing:
    """How often, and after how long, a request is repeated.

    Attributes:
        max_retries: repeats after the first request.
        base_sec: the wait before the first repeat; it doubles each time.
        cap_sec: no wait of our own is longer.
        retry_after_cap_sec: no wait that an endpoint asks for is longer.
    """

    max_retries: int = 4
    base_sec: float = 0.5
    cap_sec: float = 20.0
    retry_after_cap_sec: float = 120.0

    def wait(self, retry: int, asked: float | None, rng: random.Random) -> float:
        """Seconds before repeat number `retry` (from 1).

        Never less than what was asked for, up to the cap; a random part comes on top, so that
        many callers do not come back in the same moment.
        """
        own = min(self.cap_sec, self.base_sec * 2.0 ** min(retry - 1, 30))
        if asked is None:
            return own * rng.uniform(0.5, 1.0)
        return min(asked, self.retry_after_cap_sec) + rng.uniform(0.0, min(own, 1.0))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the answer asks to wait: `Retry-After` in seconds or as an HTTP date.

    None where it asks for nothing, or for something that is no time; never negative.
    """
    if text := headers.get("retry-after-ms"):
        milliseconds = _number(text)
        return None if milliseconds is None else milliseconds / 1000
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if (seconds := _number(text)) is not None:
        return seconds
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def refused(
    where: str, status: int, code: str, message: str, asked: float | None = None
) -> RequestError:
    """What an error answer means.

    Args:
        where: model and endpoint, for the error's text.
        status: the HTTP status; 0 for an error that came inside a stream.
        code, message: of the answer's `error` member.
        asked: seconds that the answer asks to wait.
    """
    said = f": {message}" if message else ""
    text = f"{where}: {f'HTTP {status}' if status else 'error in the stream'}{said}"
    if status == 413 or (status in (0, 400, 422) and _is_context(code, message)):
        return RequestError(LimitExceededError("context", text), again=False)
    if status in (401, 403):
        return RequestError(ModelRefusedError(f"{text} (check the API key)"), again=False)
    if status == 404:
        remedy = "check the model's name and the base URL"
        return RequestError(ModelRefusedError(f"{text} ({remedy})"), again=False)
    if status == 429 and code == "insufficient_quota":
        return RequestError(ModelRefusedError(text), again=False)
    if status == 0 or status in _AGAIN or (status >= 500 and status not in _NEVER):
        return RequestError(ModelError(text), again=True, retry_after=asked)
    return RequestError(ModelRefusedError(text), again=False)


def _is_context(code: str, message: str) -> bool:
    return code == "context_length_exceeded" or _CONTEXT.search(message) is not None
