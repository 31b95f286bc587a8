"""Where a rollout branches: what is asked at each step, and what is answered.

A policy decides from what is known before the outcome of what it branches (depth, surprise, a
budget), so that child means stay unbiased (research: a policy that looks at outcomes has to set
`outcome_dependent`, and the value says `biased`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ramify.contracts.errors import UsageError
from ramify.contracts.tree import Step, StepKind

_MOST_CHILDREN = 1024
PILOT_REASON = "pilot"
"""Why the children of a pilot tree are there."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place where a rollout may branch.

    Attributes:
        node: the node reached.
        steps: the agent's steps on the path to it; `step` is the last of them (None: none yet).
        branches: branches above it on the path.
        history: the agent's steps on the path, oldest first.
    """

    node: int
    steps: int
    branches: int = 0
    history: Sequence[Step] = ()

    @property
    def step(self) -> Step | None:
        """The step that led here."""
        return self.history[-1] if self.history else None


@dataclass(frozen=True, slots=True)
class Fork:
    """Branch here into `width` children.

    `reason` is recorded on each. Where `kind` is enumerated, `priors` has one number for each.
    """

    width: int
    reason: str
    kind: StepKind = StepKind.SAMPLED
    priors: Sequence[float] = ()
    outcome_dependent: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Take a checkpoint here and go on: it may be branched later (`BranchPolicy.after`)."""


class BranchPolicy(Protocol):
    """Decides where one rollout branches. A new one for each rollout."""

    def at(self, point: Point) -> Fork | Keep | None:
        """What to do at a place; asked once, before the first step and after each."""
        ...

    def after(self, kept: Sequence[Point]) -> Sequence[tuple[int, Fork]]:
        """What to branch once the path that kept these places has ended: (index, how)."""
        ...


@dataclass(frozen=True, slots=True)
class AtSteps:
    """Branch each path when it has taken so many steps.

    Attributes:
        widths: steps taken by the agent → children.
        reason: as it is recorded.
    """

    widths: dict[int, int]
    reason: str

    def at(self, point: Point) -> Fork | None:
        """A fork where the number of steps says so."""
        width = self.widths.get(point.steps)
        return Fork(width, f"{self.reason}@{point.steps}") if width else None

    def after(self, kept: Sequence[Point]) -> Sequence[tuple[int, Fork]]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class ValuePoints:
    """Estimate the value of `states` places along one path with `width` more continuations each.

    VinePPO's auxiliary rollouts (arXiv:2410.01679), from checkpoints instead of replays. The
    places are spread evenly over the path, its start included, whatever came of it.
    """

    states: int
    width: int

    def at(self, point: Point) -> Keep | None:
        """Keep every place of the first path."""
        return Keep() if point.branches == 0 else None

    def after(self, kept: Sequence[Point]) -> Sequence[tuple[int, Fork]]:
        """The places to branch; the end of the path has nothing to continue."""
        inner = len(kept) - 1 if len(kept) > 1 else len(kept)
        count = min(self.states, inner)
        chosen = sorted({round(i * (inner - 1) / max(count - 1, 1)) for i in range(count)})
        return [(index, Fork(self.width, f"value@{kept[index].steps}")) for index in chosen]


@dataclass(slots=True)
class PilotTree:
    """Branch in two at two places, whatever the length of the rollout turns out to be.

    The first path is walked to its end, keeping checkpoints; then it, and what branches off it,
    is doubled after half and after three quarters of its steps. `kernel.planner` reads from such
    trees where value is decided.
    """

    places: tuple[int, int] = (-1, -1)

    def at(self, point: Point) -> Fork | Keep | None:
        """Keep every place of the first path; branch the others at the second place."""
        if point.branches == 0:
            return Keep()
        if point.branches == 1 and point.steps == self.places[1] > self.places[0]:
            return Fork(2, PILOT_REASON)
        return None

    def after(self, kept: Sequence[Point]) -> Sequence[tuple[int, Fork]]:
        """One more child at each of the two places of the first path."""
        length = kept[-1].steps if kept else 0
        self.places = (length // 2, (3 * length) // 4)
        by_steps = {point.steps: index for index, point in enumerate(kept)}
        wanted = sorted(set(self.places) - {length})
        return [(by_steps[place], Fork(1, PILOT_REASON)) for place in wanted if place in by_steps]


@dataclass(frozen=True, slots=True)
class AtSurprise:
    """Branch where the policy is unsure: the step's surprise rose over that of the first step.

    Surprise is the mean negative log-probability of a step's tokens, in nats; a rise of `rise`
    asks for a branch (ARPO, arXiv:2507.19849), at most `most` times on a path.
    """

    width: int
    most: int
    rise: float

    def at(self, point: Point) -> Fork | None:
        """A fork where the last step surprised more than the first.

        Raises: UsageError (the model gives no log-probabilities).
        """
        if point.step is None or point.branches >= self.most:
            return None
        if _surprise(point.step) - _surprise(point.history[0]) < self.rise:
            return None
        return Fork(self.width, f"entropy@{point.steps}")

    def after(self, kept: Sequence[Point]) -> Sequence[tuple[int, Fork]]:
        """Nothing."""
        return ()


def _surprise(step: Step) -> float:
    logprobs: Sequence[float] = step.tokens.logprobs if step.tokens else ()
    logprobs = logprobs or step.info.get("logprobs", ())
    if not logprobs:
        raise UsageError(
            "branching by entropy needs log-probabilities, which this model does not give; "
            "branch by depth, or ask for them (sampling.logprobs)"
        )
    return -sum(logprobs) / len(logprobs)


_FORMS = (
    "group:8@step:3 (8 children after step 3), depth:8,16x2 (2 children after steps 8 and 16), "
    "values:8x4 (4 continuations from each of 8 places), entropy:2x3@0.5 (2 children where a "
    "step's surprise rises by 0.5 nats, 3 times on a path), plan"
)
_GROUP = re.compile(r"group:(\d+)@step:(\d+)")
_DEPTH = re.compile(r"depth:(\d+(?:x\d+)?(?:,\d+(?:x\d+)?)*)")
_VALUES = re.compile(r"values:(\d+)x(\d+)")
_ENTROPY = re.compile(r"entropy:(\d+)x(\d+)(?:@(\d+(?:\.\d+)?))?")


def parse_branch(text: str) -> BranchPolicy:
    """The policy that `--branch` names. (`plan` is made from pilots: `kernel.planner`.)

    Raises:
        UsageError: none of the forms, or a width below 2.
    """
    if found := _GROUP.fullmatch(text):
        return AtSteps({int(found[2]): _width(text, found[1])}, "group")
    if found := _DEPTH.fullmatch(text):
        return AtSteps(_depths(text, found[1]), "depth")
    if found := _VALUES.fullmatch(text):
        states = int(found[1])
        if states < 1:
            raise UsageError(f"--branch {text}: at least one place")
        return ValuePoints(states, _width(text, found[2], least=1))
    if found := _ENTROPY.fullmatch(text):
        return AtSurprise(_width(text, found[1]), int(found[2]), float(found[3] or 0.2))
    raise UsageError(f"--branch {text}: not one of {_FORMS}")


def _width(text: str, digits: str, least: int = 2) -> int:
    width = int(digits)
    if not least <= width <= _MOST_CHILDREN:
        raise UsageError(
            f"--branch {text}: children must be {least} to {_MOST_CHILDREN}, not {width}"
        )
    return width


def _depths(text: str, places: str) -> dict[int, int]:
    """`8,16x2`: a place without a width takes that of the next one that has one (else 2)."""
    widths: dict[int, int] = {}
    width = "2"
    for place in reversed(places.split(",")):
        step, _, own = place.partition("x")
        width = own or width
        widths[int(step)] = _width(text, width)
    return widths
