#!/bin/sh
set -e
cat > stats.py <<'END'
"""Small statistics on lists of integers."""

from collections import Counter


def median(values: list[int]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def mode(values: list[int]) -> int:
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def percentile(values: list[int], p: int) -> int:
    ordered = sorted(values)
    return ordered[-(-len(ordered) * p // 100) - 1]
END
