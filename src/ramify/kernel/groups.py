"""Advantages of whole rollouts within a group: one number per leaf, whatever lies above it.

None stands for a rollout that was never scored: it enters no mean and gets no advantage. A group
in which there is nothing to compare with gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import sqrt

from ramify.kernel.outline import Number

Rewards = Sequence[Number | None]


def grpo(rewards: Rewards, *, eps: float = 1e-6, lone_raw: bool = False) -> list[Number | None]:
    """GRPO (arXiv:2402.03300): (R - mean) / (std + eps), with the sample's std (n - 1).

    `lone_raw` does as verl, SkyRL and Tree-GRPO do with a group of one: mean 0 and std 1, so that
    its advantage is its reward. Without it a lone rollout gets 0.
    """
    known = [r for r in rewards if r is not None]
    if len(known) < 2:
        mean, std = (0, 1.0) if lone_raw else (sum(known), 1.0)
    else:
        mean = sum(known) / len(known)
        std = sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1))
    return [None if r is None else float(r - mean) / (std + eps) for r in rewards]


def dr_grpo(rewards: Rewards) -> list[Number | None]:
    """Dr. GRPO (arXiv:2503.20783): R - mean, and no division by the length of the answer.

    What prime-rl and tinker compute by default.
    """
    known = [r for r in rewards if r is not None]
    if not known:
        return list(rewards)
    mean = sum(known) / len(known)
    return [None if r is None else r - mean for r in rewards]


def rloo(rewards: Rewards) -> list[Number | None]:
    """RLOO (arXiv:2402.14740): R - mean of the others = n / (n - 1) (R - mean)."""
    known = [r for r in rewards if r is not None]
    n, total = len(known), sum(known)
    if n < 2:
        return [None if r is None else r * 0 for r in rewards]
    return [None if r is None else r - (total - r) / (n - 1) for r in rewards]


def maxrl(rewards: Rewards) -> list[Number | None]:
    """MaxRL (arXiv:2602.02710): (R - mean) / mean; 0 where nobody earned anything.

    Raises:
        ValueError: a reward is negative.
    """
    known = [r for r in rewards if r is not None]
    if any(r < 0 for r in known):
        raise ValueError("MaxRL divides by the mean reward, so rewards must not be negative")
    mean = sum(known) / len(known) if known else 0
    if not mean:
        return [None if r is None else r * 0 for r in rewards]
    return [None if r is None else (r - mean) / mean for r in rewards]


def tree_grpo(
    trees: Sequence[Rewards], *, eps: float = 1e-6, lone_raw: bool = False
) -> list[list[Number | None]]:
    """Tree-GRPO (arXiv:2509.21240), as coded: GRPO within each tree plus GRPO over all leaves.

    It has low variance, and it is biased in unbalanced trees. The code applies the number to every
    token of each exported leaf, so a prefix that k leaves share enters the gradient k times.
    """
    over_all = iter(grpo(list(chain.from_iterable(trees)), eps=eps, lone_raw=lone_raw))
    return [
        [
            None if inner is None or outer is None else inner + outer
            for inner, outer in zip(grpo(tree, eps=eps, lone_raw=lone_raw), over_all, strict=False)
        ]
        for tree in trees
    ]


def _flat(function: Callable[[Rewards], list[Number | None]]) -> GroupRule:
    """A rule for flat groups, on all leaves of all trees of a task."""

    def rule(trees: Sequence[Rewards]) -> list[list[Number | None]]:
        found = iter(function(list(chain.from_iterable(trees))))
        return [[next(found) for _ in tree] for tree in trees]

    return rule


GroupRule = Callable[[Sequence[Rewards]], list[list[Number | None]]]
"""Rewards of the leaves of each tree of a task → their advantages."""

GROUP_RULES: dict[str, GroupRule] = {
    "grpo": _flat(grpo),
    "dr-grpo": _flat(dr_grpo),
    "rloo": _flat(rloo),
    "maxrl": _flat(maxrl),
    "tree-grpo": tree_grpo,
    # as the systems of these names compute them by default
    "prime-rl": _flat(dr_grpo),
    "tinker": _flat(dr_grpo),
    "trl": _flat(lambda rewards: grpo(rewards, eps=1e-4)),
    "verl": _flat(lambda rewards: grpo(rewards, lone_raw=True)),
    "skyrl": _flat(lambda rewards: grpo(rewards, lone_raw=True)),
    "tree-grpo-verl": lambda trees: tree_grpo(trees, lone_raw=True),
}
"""Group rules by name."""
