"""Which task comes next: order, weights, curriculum and repeats, all from one seed."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ramify.contracts.errors import ConfigError, UnknownNameError

Weights = Callable[[str], float] | Mapping[str, float]
Curriculum = Callable[[float], Weights]


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a curriculum: until that fraction of the draws, these weights.

    Attributes:
        until: above 0, at most 1; the last stage's is 1.
        weights: task id → weight, or tag → weight, or a function of the task id (a predicate
            works: False is 0).
    """

    until: float
    weights: Weights


class TaskSampler:
    """The sequence of `(task_id, repeat)` that a job runs: iterate it, as often as you like.

    Deterministic: the same arguments give the same sequence, on any machine. Lazy: nothing is
    drawn before it is asked for, so `count` may be as large as you like.

    Without `weights` and `curriculum` every task comes once, in the given order or shuffled.
    With either, `count` tasks are drawn with replacement; a task's weight is the product of the
    weights given for its id and for each of its tags (1 where nothing is given; 0 leaves it
    out). Each draw is one group of `repeats` rollouts. Repeats of a task are numbered from 0
    on, and go on counting when it is drawn again, so that no pair comes twice.

    Args:
        tasks: task ids, unique.
        seed: for shuffling and drawing.
        order: `given` or `shuffled`.
        repeats: rollouts per draw, at least 1.
        interleave: False: a task's repeats are adjacent. True: all tasks once, then all again
            (with `count`: within each block of as many draws as there are tasks).
        tags: task id → its tags.
        weights: by task id, by tag, or a function of the task id.
        curriculum: stages, or a function from the fraction done (0 to 1) to weights. Combined
            with `weights` by multiplication.
        count: draws; needed with `weights` or `curriculum`.

    Raises:
        ConfigError: arguments that contradict each other, or weights that leave nothing.
        UnknownNameError: a weight for a name that is neither a task nor a tag.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int = 0,
        order: Literal["given", "shuffled"] = "given",
        repeats: int = 1,
        interleave: bool = False,
        tags: Mapping[str, Sequence[str]] | None = None,
        weights: Weights | None = None,
        curriculum: Sequence[Stage] | Curriculum | None = None,
        count: int | None = None,
    ) -> None:
        self._tasks = tuple(tasks)
        self._seed, self._order = seed, order
        self._repeats, self._interleave = repeats, interleave
        self._tags = {task: tuple((tags or {}).get(task, ())) for task in self._tasks}
        self._weights, self._curriculum, self._count = weights, curriculum, count
        self._check()

    def __len__(self) -> int:
        """How many pairs come."""
        return (len(self._tasks) if self._count is None else self._count) * self._repeats

    def __iter__(self) -> Iterator[tuple[str, int]]:
        draws = self._in_order() if self._count is None else self._drawn(self._count)
        size = max(1, len(self._tasks)) if self._interleave else 1
        seen: dict[str, int] = {}
        while block := tuple(itertools.islice(draws, size)):
            for _ in range(self._repeats):
                for task in block:
                    seen[task] = seen.get(task, -1) + 1
                    yield task, seen[task]

    def _in_order(self) -> Iterator[str]:
        tasks = list(self._tasks)
        if self._order == "shuffled":
            random.Random(self._seed).shuffle(tasks)
        return iter(tasks)

    def _drawn(self, count: int) -> Iterator[str]:
        rng = random.Random(self._seed)
        current: Weights | None = None
        sums: list[float] = []
        for index in range(count):
            weights = self._stage(index / count)
            if not sums or weights is not current:
                current, sums = weights, self._sums(weights)
            last = bisect.bisect_left(sums, sums[-1])  # the product below may round up to the sum
            yield self._tasks[bisect.bisect_right(sums, rng.random() * sums[-1], 0, last)]

    def _stage(self, fraction: float) -> Weights | None:
        curriculum = self._curriculum
        if curriculum is None:
            return None
        if callable(curriculum):
            return curriculum(fraction)
        return next(stage.weights for stage in curriculum if fraction < stage.until)

    def _sums(self, stage: Weights | None) -> list[float]:
        sums = list(
            itertools.accumulate(
                self._weight(self._weights, task) * self._weight(stage, task)
                for task in self._tasks
            )
        )
        if not sums or not sums[-1] > 0:
            raise ConfigError("the weights leave no task to draw", field="weights")
        return sums

    def _weight(self, weights: Weights | None, task: str) -> float:
        if weights is None:
            return 1.0
        if callable(weights):
            value = float(weights(task))
        else:
            names = (task, *self._tags[task])
            value = math.prod(weights[name] for name in names if name in weights)
        if not 0 <= value < math.inf:
            raise ConfigError(f"weight of {task}: {value} is not 0 or more", field="weights")
        return value

    def _check(self) -> None:
        if len(set(self._tasks)) != len(self._tasks):
            raise ConfigError("a task id occurs twice", field="tasks")
        if self._order not in ("given", "shuffled"):
            raise ConfigError(f"{self._order!r}: use 'given' or 'shuffled'", field="order")
        if self._repeats < 1:
            raise ConfigError(f"must be at least 1, not {self._repeats}", field="repeats")
        weighted = self._weights is not None or self._curriculum is not None
        if weighted != (self._count is not None):
            raise ConfigError(
                "`count` goes with `weights` or `curriculum`: tasks are then drawn with "
                "replacement, and somebody must say how many",
                field="count",
            )
        if self._count is not None and self._count < 0:
            raise ConfigError(f"must be 0 or more, not {self._count}", field="count")
        self._check_weights(self._weights)
        if self._curriculum is not None and not callable(self._curriculum):
            ends = [stage.until for stage in self._curriculum]
            if not ends or ends[-1] != 1 or ends != sorted(set(ends)) or not ends[0] > 0:
                raise ConfigError(
                    f"stages must end at rising fractions, the last at 1; not {ends}",
                    field="curriculum",
                )
            for stage in self._curriculum:
                self._check_weights(stage.weights)
                if self._count:
                    self._sums(stage.weights)
        elif self._count and self._curriculum is None:
            self._sums(None)

    def _check_weights(self, weights: Weights | None) -> None:
        if weights is None or callable(weights):
            return
        known = {*self._tasks, *(tag for tags in self._tags.values() for tag in tags)}
        for name in weights:
            if name not in known:
                raise UnknownNameError("task or tag", name, known)
