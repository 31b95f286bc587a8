"""What a rollout amounts to, out of its leaves: one outcome and one reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ramify.contracts.reward import VerifyResult, pending_parts
from ramify.contracts.tree import Outcome
from ramify.kernel.grove import Leaf
from ramify.kernel.outcome import Verdict
from ramify.kernel.stages import weakest
from ramify.kernel.tree import Tree
from ramify.kernel.value import tree_values


@dataclass(frozen=True, slots=True)
class Total:
    """What a rollout amounts to.

    Attributes:
        outcome: one word.
        reward: None where the outcome is never scored.
        verdict: what went wrong; of several leaves, with the first that has this outcome.
        verified: the score of the only leaf; of several, their mean items.
        se, biased: of the reward of a rollout with several leaves.
        dropped: leaves that were never scored.
    """

    outcome: Outcome
    reward: float | None
    verdict: Verdict | None
    verified: VerifyResult | None
    se: float | None = None
    biased: bool = False
    dropped: int = 0


_ORDER = (
    Outcome.CANCELLED,
    Outcome.SCORED,
    Outcome.AGENT_TIMEOUT,
    Outcome.AGENT_ERROR,
    Outcome.INVALID,
    Outcome.ENV_ERROR,
    Outcome.INFRA_ERROR,
)
"""Of several leaves the first of these is the rollout's: one that was stopped has to run again,
and a score outweighs what kept others from one (they are counted as dropped)."""


def total(tree: Tree, leaves: Sequence[Leaf], minimum: float) -> Total:
    """One outcome and one reward for all leaves of a tree. `minimum`: what `invalid` counts as."""
    if len(leaves) == 1:
        return _single(leaves[0], minimum)
    first = min(leaves, key=lambda leaf: _ORDER.index(leaf.outcome))
    dropped = sum(not leaf.outcome.counts for leaf in leaves)
    merged = _merged([(leaf.node, leaf.verified) for leaf in leaves if leaf.verified is not None])
    if not first.outcome.counts:
        return Total(first.outcome, None, first.verdict, merged, dropped=dropped)
    returns = {
        leaf.node: reward for leaf in leaves if (reward := _reward(leaf, minimum)) is not None
    }
    root = tree_values(tree, returns).at(0)
    return Total(
        first.outcome,
        None if root.value is None else float(root.value),
        first.verdict,
        merged,
        root.se,
        root.biased,
        dropped,
    )


def _single(leaf: Leaf, minimum: float) -> Total:
    dropped = int(not leaf.outcome.counts)
    return Total(leaf.outcome, _reward(leaf, minimum), leaf.verdict, leaf.verified, dropped=dropped)


def _reward(leaf: Leaf, minimum: float) -> float | None:
    if leaf.outcome is Outcome.INVALID:
        return minimum
    if leaf.outcome.counts and leaf.verified is not None:
        return leaf.verified.reward
    return None


def _merged(scored: Sequence[tuple[int, VerifyResult]]) -> VerifyResult | None:
    """Mean items of several leaves (of those that have them), and the weakest isolation.

    Errors of one name are told together, with the leaves that they are of.
    """
    if not scored:
        return None
    found = [one for _, one in scored]
    names = sorted({name for one in found for name in one.items})
    items = {name: fmean(o.items[name] for o in found if name in o.items) for name in names}
    errors: dict[str, str] = {}
    for leaf, one in scored:
        for name, text in one.errors.items():
            said = f"leaf {leaf}: {text}"
            errors[name] = f"{errors[name]}; {said}" if name in errors else said
    return VerifyResult(
        reward=None,
        items=items,
        grader_isolation=weakest([one.grader_isolation for one in found]),
        details={"pending": tuple(dict.fromkeys(p for one in found for p in pending_parts(one)))},
        errors=errors,
    )
