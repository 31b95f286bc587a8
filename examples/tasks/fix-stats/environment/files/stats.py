"""Small statistics on lists of integers."""

from collections import Counter


def median(values: list[int]) -> float:
    values.sort()
    return values[len(values) // 2]


def mode(values: list[int]) -> int:
    return Counter(values).most_common(1)[0][0]


def percentile(values: list[int], p: int) -> int:
    ordered = sorted(values)
    return ordered[int(len(ordered) * p / 100)]
