"""The same scoring in production: trajectories that somebody recorded, scored as they come."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from ramify import compose
from ramify.contracts.messages import Usage
from ramify.contracts.metering import metering
from ramify.contracts.reward import (
    Granularity,
    GroupReward,
    Reward,
    RewardEvent,
    VerifyResult,
    pending_parts,
)
from ramify.contracts.task import Task
from ramify.engine.executor import Executor
from ramify.envs.recorded import Surroundings, score_nodes
from ramify.envs.tail import Line
from ramify.envs.tallies import Tallies
from ramify.kernel.outcome import Verdict
from ramify.kernel.tree import Tree

_REWARD = "reward"
_SUSPECT = "suspect"
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Trajectories:
    """What one line holds.

    Attributes:
        task: the problem, as far as it is known.
        tree: what happened.
        leaves: the ends of the paths that are scored.
        tree_id: what the record calls itself; empty where it has no name.
        ids: leaf → what the record calls it, where that is another number.
        skipped: leaf → why it has no score (its world or its machine failed).
        recorded: leaf → the reward it was recorded with.
    """

    task: Task
    tree: Tree
    leaves: Sequence[int]
    tree_id: str = ""
    ids: Mapping[int, int] = field(default_factory=dict[int, int])
    skipped: Mapping[int, str] = field(default_factory=dict[int, str])
    recorded: Mapping[int, float] = field(default_factory=dict[int, float])


class Watched(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One trajectory, scored: a line of output.

    `line` is where it came from; `reward` is null where it could not be scored, and `errors` says
    why. `rewards` is the mean of its terminal signals by space, `steps` the signals on single steps
    (`node` counts them from 1). `suspect` says why somebody should look at it: the spaces that
    speak against a good output, or whatever a part of the reward found. `pending` names parts that
    compare siblings, which a line has none of. `recorded` is the reward that came with it.
    `grading` is what judges cost, for all of a line in its first. `problem`: the line holds no
    trajectory.
    """

    line: int
    reward: float | None
    task_id: str = ""
    tree_id: str = ""
    leaf: int | None = None
    rewards: dict[str, float] = {}
    items: dict[str, float] = {}
    errors: dict[str, str] = {}
    steps: tuple[RewardEvent, ...] = ()
    suspect: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    recorded: float | None = None
    skipped: str = ""
    grading: Usage = Usage()
    problem: str = ""


@dataclass(slots=True)
class WatchSummary:
    """What was seen so far.

    Attributes:
        lines: lines with something in them.
        scored: trajectories that have a reward.
        unscored: those that have none, because a reward failed.
        skipped: those that never had a score, because their world or machine failed.
        bad: lines that hold no trajectory.
        suspect: trajectories that somebody should look at.
        pending: parts that compare siblings, and so are in no reward.
        grading: what judges cost.
        metrics: rewards, spaces and parts.
    """

    lines: int = 0
    scored: int = 0
    unscored: int = 0
    skipped: int = 0
    bad: int = 0
    suspect: int = 0
    pending: set[str] = field(default_factory=set[str])
    grading: Usage = Usage()
    metrics: Tallies = field(default_factory=Tallies)

    def add(self, found: Sequence[Watched]) -> None:
        """Count what came of one line."""
        self.lines += 1
        for one in found:
            self.grading += one.grading
            self.bad += bool(one.problem)
            self.skipped += bool(one.skipped)
            self.suspect += bool(one.suspect)
            self.pending.update(one.pending)
            if one.problem or one.skipped:
                continue
            self.scored += one.reward is not None
            self.unscored += one.reward is None
            spaces = {f"space {name}": value for name, value in one.rewards.items()}
            errors = {k: v for k, v in one.errors.items() if k != _REWARD}
            self.metrics.add({_REWARD: one.reward, **spaces, **one.items}, errors)

    @property
    def whole(self) -> bool:
        """Nothing was left without a score that should have one."""
        return not self.bad and not self.unscored


@dataclass(frozen=True, slots=True)
class Monitor:
    """Scores lines with one reward.

    Attributes:
        parse: what a line holds; raises where that is no trajectory.
        reward: how it is scored.
        around: what the contexts of rewards have in common.
        artifacts: a directory for what rewards leave behind.
        concurrency: lines that are scored at once.
    """

    parse: Callable[[Line], Trajectories]
    reward: Reward
    around: Surroundings
    artifacts: Path
    concurrency: int = 4

    async def watch(self, lines: AsyncIterable[Line]) -> AsyncGenerator[Sequence[Watched]]:
        """What came of each line, in their order: one entry per trajectory in it.

        A few lines at a time are held in memory. Nothing that a line holds, or that a reward does
        with it, ends the stream.
        """
        async with Executor(self._line, self.concurrency) as executor:
            async with aclosing(executor.generate(lines, ordered=True)) as found:
                async for one in found:
                    yield one

    async def _line(self, line: Line) -> Sequence[Watched]:
        if line.problem:
            return [Watched(line=line.number, reward=None, problem=line.problem)]
        try:
            found = await asyncio.to_thread(self.parse, line)
        except Exception as error:  # whatever a line holds, the others are scored
            torn = "; it is cut off, the newline is missing" if line.torn else ""
            said = f"holds no trajectory: {_text(error)}{torn}"
            return [Watched(line=line.number, reward=None, problem=said)]
        wanted = [leaf for leaf in found.leaves if leaf not in found.skipped]
        name = found.tree_id or f"line-{line.number}"
        ctx = self.around.context(found.task, name, line.number, self.artifacts)
        nodes = [found.tree.node(leaf) for leaf in wanted]
        compares = isinstance(self.reward, GroupReward) and len(nodes) > 1
        with metering() as meter:
            scores = await score_nodes(self.reward, nodes, [ctx] * len(nodes), compare=compares)
        by_leaf = dict(zip(wanted, scores, strict=True))
        watched = [
            _watched(line, found, leaf, _compared(by_leaf.get(leaf))) for leaf in found.leaves
        ]
        if watched:
            watched[0] = msgspec.structs.replace(watched[0], grading=meter.used)
        return watched


def _compared(score: VerifyResult | Verdict | None) -> VerifyResult | Verdict | None:
    """The same; of a score in several spaces also whether they disagree."""
    if not isinstance(score, VerifyResult) or _SUSPECT in score.items:
        return score
    several = len({event.space for event in score.events if event.name != _REWARD}) > 1
    if not several:
        return score
    marked = compose.with_suspicion(score)
    details = {**score.details, _SUSPECT: marked.details.get(_SUSPECT, ())}
    return msgspec.structs.replace(score, items=marked.items, details=details)


def _watched(
    line: Line, found: Trajectories, leaf: int, score: VerifyResult | Verdict | None
) -> Watched:
    about = Watched(
        line=line.number,
        reward=None,
        task_id=found.task.task_id,
        tree_id=found.tree_id,
        leaf=found.ids.get(leaf, leaf),
        recorded=found.recorded.get(leaf),
        skipped=found.skipped.get(leaf, ""),
    )
    if score is None:
        return about
    if isinstance(score, Verdict):
        said = _clean(score.error.message)
        return msgspec.structs.replace(about, errors={_REWARD: said}, suspect=(said,))
    steps = tuple(e for e in score.events if e.granularity is Granularity.STEP)
    return msgspec.structs.replace(
        about,
        reward=score.reward,
        rewards=_by_space(score),
        items=score.items,
        errors={name: _clean(text) for name, text in score.errors.items()},
        steps=steps,
        suspect=tuple(map(_clean, _suspicions(score.details))),
        pending=pending_parts(score),
    )


def _by_space(score: VerifyResult) -> dict[str, float]:
    """Mean of the terminal signals of each space."""
    values: dict[str, list[float]] = defaultdict(list)
    for event in score.events:
        if event.granularity is Granularity.TERMINAL and event.name != _REWARD:
            values[event.space.value].append(event.value)
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def _suspicions(details: Mapping[str, Any], depth: int = 0) -> list[str]:
    """What parts of a reward say under `suspect`, however deep they stand in its details."""
    found: list[str] = []
    for key, value in details.items():
        if key == _SUSPECT:
            several = (
                cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
            )
            found += [_SUSPECT if one is True else str(one) for one in several if one]
        elif isinstance(value, dict) and depth < _DEEPEST:
            found += _suspicions(cast("Mapping[str, Any]", value), depth + 1)
    return found


def _text(error: BaseException) -> str:
    text = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return _clean((text or type(error).__name__)[:300])


def _clean(text: str) -> str:
    """Text that JSON can hold: what a reward says may have half a character of a file's name."""
    return text.encode("utf-8", "replace").decode()
