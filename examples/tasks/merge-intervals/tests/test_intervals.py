"""Each call runs in a process of its own, as another user: only plain values come back."""

import random
import unittest
from typing import Any

from ramify_tests import CallFailed, isolated_call


def merge(intervals: list[list[int]]) -> Any:
    return isolated_call("intervals.py", "merge", intervals)


def halves(intervals: list[list[int]]) -> set[int]:
    """Twice each whole and half number that is in one of the intervals."""
    return {n for start, end in intervals for n in range(2 * start, 2 * end + 1)}


class TestMerge(unittest.TestCase):
    def test_nothing(self) -> None:
        self.assertEqual(merge([]), [])

    def test_apart(self) -> None:
        self.assertEqual(merge([[5, 6], [1, 2]]), [[1, 2], [5, 6]])

    def test_overlapping_and_nested(self) -> None:
        self.assertEqual(merge([[1, 10], [2, 3], [8, 12]]), [[1, 12]])

    def test_touching(self) -> None:
        self.assertEqual(merge([[3, 5], [1, 3], [7, 7]]), [[1, 5], [7, 7]])

    def test_drawn_anew_each_time(self) -> None:
        draw = random.SystemRandom()
        starts = [draw.randrange(-1000, 1000) for _ in range(50)]
        intervals = [[start, start + draw.randrange(60)] for start in starts]
        found = merge(intervals)
        self.assertEqual(halves(found), halves(intervals))
        self.assertTrue(all(one[1] < two[0] for one, two in zip(found, found[1:], strict=False)))

    def test_refuses_what_is_no_interval(self) -> None:
        with self.assertRaises(CallFailed) as caught:
            merge([[1, 2], [4, 3]])
        self.assertEqual(caught.exception.type, "ValueError")
