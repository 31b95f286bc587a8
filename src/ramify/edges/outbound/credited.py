"""The trees of a job as exporters need them: valued, and with credit and weights where asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.contracts.result import RolloutResult
from ramify.engine.reading import JobReader
from ramify.kernel.outline import Number, leaf_returns
from ramify.kernel.schemes import SCHEMES, Credit, assign_credit
from ramify.kernel.tree import Tree, tree_from_events
from ramify.kernel.value import Values, tree_values
from ramify.kernel.weights import TokenWeights, WeightScheme, token_weights


@dataclass(frozen=True, slots=True)
class CreditedTree:
    """One rollout.

    Attributes:
        result: what came of it.
        example_id: number of its task among those of the job.
        tree: what was recorded.
        values: of its nodes, by child means.
        alone: whether it has one leaf.
        credit, weights: None unless they were asked for.
    """

    result: RolloutResult
    example_id: int
    tree: Tree
    values: Values
    alone: bool
    credit: Credit | None = None
    weights: TokenWeights | None = None

    def reward(self, leaf: int) -> float | None:
        """What a leaf earned; None where it was never scored.

        Of a rollout with one leaf it is the rollout's, which may have come from several stages.
        """
        if self.alone:
            return self.result.reward
        value = self.values.value[leaf]
        return None if value is None else float(value)


def credited_trees(
    job: Path,
    *,
    scored_only: bool = False,
    weights: str | None = None,
    advantage: str | None = None,
) -> Iterator[CreditedTree]:
    """The trees of a job, by rollout id; those of one task at a time are held in memory.

    Args:
        job: the run directory.
        scored_only: leave out rollouts that were never scored.
        weights: a token-weight scheme (`kernel.weights`).
        advantage: an advantage scheme (`kernel.schemes`), over all rollouts of a task.

    Raises:
        UnknownNameError: no such scheme.
        ConfigError: an advantage cannot be computed from the rewards.
        StoreError: the run directory cannot be read.
    """
    if weights is not None and weights not in tuple(WeightScheme):
        raise UnknownNameError("weight scheme", weights, [each.value for each in WeightScheme])
    if advantage is not None and advantage not in SCHEMES:
        raise UnknownNameError("advantage", advantage, SCHEMES)
    reader = JobReader(job)
    results = reader.results
    tasks = {task_id: n for n, task_id in enumerate(sorted({r.task_id for r in results.values()}))}
    groups: dict[str, list[RolloutResult]] = {}
    for _, result in sorted(results.items()):
        if result.outcome.counts or not scored_only:
            groups.setdefault(result.task_id, []).append(result)
    for task_id, group in groups.items():
        trees = [_valued(reader, result, tasks[task_id]) for result in group]
        yield from _with(trees, weights, advantage)


def _valued(reader: JobReader, result: RolloutResult, example_id: int) -> CreditedTree:
    tree = tree_from_events(reader.events(result.rollout_id))
    returns: dict[int, Number] = {**leaf_returns(tree)}
    leaves = list(tree.leaves())
    alone = len(leaves) == 1
    if alone:
        returns = {} if result.reward is None else {leaves[0]: result.reward}
    return CreditedTree(result, example_id, tree, tree_values(tree, returns), alone)


def _with(
    trees: Sequence[CreditedTree], weights: str | None, advantage: str | None
) -> Iterator[CreditedTree]:
    credits: Sequence[Credit | None] = [None] * len(trees)
    if advantage is not None:
        try:
            credits = assign_credit(advantage, [one.values for one in trees])
        except ValueError as error:
            task = trees[0].result.task_id
            raise ConfigError(f"{task}: {error}", field=f"--advantage {advantage}") from error
    for one, credit in zip(trees, credits, strict=True):
        weighed = token_weights(one.values, WeightScheme(weights)) if weights else None
        yield replace(one, credit=credit, weights=weighed)
