"""Waiting for a server that is coming up or coming back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_PATIENCE_SEC = 60.0


def patiently(opened: Callable[[], _T]) -> _T:
    """Try until it works, for a minute. Raises the last OSError."""
    deadline = time.monotonic() + _PATIENCE_SEC
    while True:
        try:
            return opened()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
