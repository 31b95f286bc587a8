"""What all limbs of one rollout share, and how each of them ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ramify.contracts.messages import Usage
from ramify.contracts.reward import VerifyResult
from ramify.contracts.tree import Outcome
from ramify.kernel.cut import Cut, World
from ramify.kernel.outcome import Verdict
from ramify.kernel.places import Places
from ramify.kernel.plan import RolloutPlan
from ramify.kernel.policy import Point


@dataclass(frozen=True, slots=True)
class Leaf:
    """How a path ended: its last node, what went wrong (if anything did), its score (if any)."""

    node: int
    verdict: Verdict | None
    verified: VerifyResult | None

    @property
    def outcome(self) -> Outcome:
        """The word on the leaf."""
        return self.verdict.outcome if self.verdict else Outcome.SCORED


@dataclass(slots=True)
class Grove:
    """What all limbs of one rollout share.

    Attributes:
        plan: what the rollout is made of.
        places: how many limbs may be alive at once.
        leaves: how each path ended.
        spent: worlds that became checkpoints; their clean-up waits for the rollout's end.
        cuts: checkpoints that are not discarded yet.
        kept: those for later, by the place they were taken at.
        artifacts: the rollout's directory.
        graded: what models cost that scored it.
    """

    plan: RolloutPlan
    places: Places
    artifacts: Path
    leaves: list[Leaf] = field(default_factory=list[Leaf])
    spent: list[World] = field(default_factory=list[World])
    cuts: list[Cut] = field(default_factory=list[Cut])
    kept: list[tuple[Point, Cut]] = field(default_factory=list[tuple[Point, Cut]])
    graded: Usage = Usage()
