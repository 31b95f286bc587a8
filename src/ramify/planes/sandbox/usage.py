"""What a command used, as its supervisor tells it."""

from __future__ import annotations

import re

from ramify.contracts.process import Usage

_TOLD = re.compile(r"(\d{1,18}) (\d{1,18}) (\d{1,18})")


def read_usage(told: object) -> Usage | None:
    """CPU milliseconds, bytes at most and the least that is known; None for anything else."""
    match = _TOLD.fullmatch(told) if isinstance(told, str) else None
    if match is None:
        return None
    cpu_ms, peak, least = map(int, match.groups())
    return Usage(cpu_ms, peak if peak > least else None, least)
