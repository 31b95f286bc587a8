"""Export as preference pairs: two continuations of one state, the better one and the worse.

Fields: example_id, task_id, tree_id, node, prompt (the conversation up to the state), chosen and
rejected (what each segment adds, up to the next branch or leaf), gap (by how much its value is
higher), z (the gap in its standard errors; null where those are not known), info.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ramify.contracts.messages import Message
from ramify.edges.outbound.credited import CreditedTree, credited_trees
from ramify.edges.outbound.records import rollout_info, write_messages
from ramify.kernel.credit import Pair, preference_pairs


def export_pairs(job: Path, *, scored_only: bool = False) -> Iterator[dict[str, Any]]:
    """Pairs of a job, by task, rollout id and state; of siblings that differ in what they say.

    Args:
        job: the run directory.
        scored_only: nothing to leave out: a pair has scores on both sides.

    Raises:
        StoreError: the run directory cannot be read.
    """
    for one in credited_trees(job, scored_only=scored_only):
        for pair in preference_pairs(one.values):
            record = _record(one, pair)
            if record["chosen"] != record["rejected"]:
                yield record


def _record(one: CreditedTree, pair: Pair) -> dict[str, Any]:
    prompt = (*one.tree.opening, *_said(one, one.tree.path(pair.node)))
    return {
        "example_id": one.example_id,
        "task_id": one.result.task_id,
        "tree_id": one.result.rollout_id,
        "node": pair.node,
        "prompt": write_messages(prompt),
        "chosen": write_messages(_said(one, pair.chosen)),
        "rejected": write_messages(_said(one, pair.rejected)),
        "gap": float(pair.gap),
        "z": pair.z,
        "info": rollout_info(one.result),
    }


def _said(one: CreditedTree, nodes: Sequence[int]) -> tuple[Message, ...]:
    """What the steps to these nodes add."""
    steps = (one.tree.step(node) for node in nodes)
    return tuple(message for step in steps if step for message in step.messages)
