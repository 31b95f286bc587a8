"""What each token weighs when a tree is exported as linear records, so that nothing counts twice.

A record is a root-to-leaf path, so the tokens of an edge are copied into the records of all k_e
leaves below it. With w(e) the product over the branches above of 1/n (sampled) or the prior
(enumerated), each copy weighs:

| scheme | weight | adds up to |
|---|---|---|
| own | 1 in the first record, 0 in the others (as prime-rl does) | unique tokens |
| inv | 1 / k_e | unique tokens |
| path | w(e) / k_e | over the ends: 1, and times their returns: V(root) by child means |
| frac | 1 / leaves | over the leaves: 1 (their plain mean) |
| suffix | 1 where k_e = 1, else 0: shared prefixes are masked (R3L arXiv:2601.03715) | own tokens |

`path` is the unbiased weight of an on-policy mean or gradient, and `frac` equals it in balanced
trees only. `own` and `inv` train every token once, which gives branched regions more than their
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ramify.kernel.outline import Number
from ramify.kernel.value import Estimator, Values


class WeightScheme(StrEnum):
    """How copies of shared tokens are weighed."""

    OWN = "own"
    """The first record owns them."""
    INV = "inv"
    """Each copy has an equal share."""
    PATH = "path"
    """Each copy has an equal share of the probability of the path."""
    FRAC = "frac"
    """Every record counts the same."""
    SUFFIX = "suffix"
    """Shared tokens are masked."""


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """Weights of the edges of a tree, under the nodes that they lead to.

    Attributes:
        scheme: how they were made.
        copies: records that each edge is copied into.
        each: weight of one copy; of the owner's under `own`.
        owners: the leaf whose record owns the edge; empty but under `own`.
    """

    scheme: WeightScheme
    copies: Sequence[int]
    each: Sequence[Number]
    owners: Sequence[int] = ()

    def along(self, path: Sequence[int]) -> list[Number]:
        """The weight of each edge in the record of a path (ids from the root), the root aside."""
        leaf = path[-1]
        if self.owners:
            return [self.each[n] if self.owners[n] == leaf else 0 for n in path[1:]]
        return [self.each[node] for node in path[1:]]

    def total(self, node: int) -> Number:
        """The weight of an edge over all records: what it weighs where it is stored once."""
        return self.each[node] * (1 if self.owners else self.copies[node])


def token_weights(
    values: Values, scheme: WeightScheme, leaves: Sequence[int] | None = None
) -> TokenWeights:
    """Weigh the edges of a tree for the records of some leaves.

    Args:
        values: the tree, valued by child means.
        scheme: how.
        leaves: those that are exported, in the order of the records; by default all that were
            scored. What is below no exported leaf weighs 0.

    Raises:
        ValueError: `path` on a tree that was not valued by child means.
    """
    parents, size = values.outline.parents, len(values)
    chosen = _scored(values) if leaves is None else leaves
    copies = [0] * size
    for leaf in chosen:
        copies[leaf] = 1
    for node in range(size - 1, 0, -1):
        copies[parents[node]] += copies[node]
    one = _one(values)
    match scheme:
        case WeightScheme.OWN:
            each: list[Number] = [one if k else 0 for k in copies]
            return TokenWeights(scheme, copies, each, _owners(values, chosen))
        case WeightScheme.INV:
            each = [one / k if k else 0 for k in copies]
        case WeightScheme.PATH:
            paths = path_weights(values)
            each = [w / k if k else 0 for w, k in zip(paths, copies, strict=True)]
        case WeightScheme.FRAC:
            share = one / max(len(chosen), 1)
            each = [share if k else 0 for k in copies]
        case WeightScheme.SUFFIX:
            each = [one if k == 1 else 0 for k in copies]
    return TokenWeights(scheme, copies, each)


def path_weights(values: Values) -> list[Number]:
    """w of each edge: the share that its subtree has in V(root) by child means; 1 at the root.

    Forced edges, and those below which nothing was scored, have 0.

    Raises:
        ValueError: the tree was not valued by child means.
    """
    if values.estimator is not Estimator.CHILD_MEAN:
        raise ValueError("path weights are those of child means; value the tree with CHILD_MEAN")
    parents, sampled, count = values.outline.parents, values.sampled, values.count
    found: list[Number] = [0] * len(values)
    found[0] = _one(values) if values.value[0] is not None else 0
    for node in range(1, len(found)):
        parent = parents[node]
        if sampled[node]:
            found[node] = found[parent] / count[parent]
        elif parent in values.options:
            found[node] = found[parent] * values.options[parent].get(node, 0)
    return found


def _one(values: Values) -> Number:
    """1 in the kind of number that the values are."""
    root = values.value[0]
    return 1 if root is None else root * 0 + 1


def _scored(values: Values) -> list[int]:
    inner = set(values.outline.parents)
    return [n for n, v in enumerate(values.value) if v is not None and n not in inner]


def _owners(values: Values, leaves: Sequence[int]) -> list[int]:
    """The first leaf below each node; -1 where there is none."""
    parents = values.outline.parents
    found = [-1] * len(values)
    for leaf in leaves:
        node = leaf
        while node >= 0 and found[node] < 0:
            found[node] = leaf
            node = parents[node]
    return found
