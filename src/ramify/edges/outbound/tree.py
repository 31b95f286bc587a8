"""Export as trees: one line per rollout, in which what paths share is stored once.

Fields: example_id, task_id, tree_id, prompt, reward, value, se, biased, dropped, nodes, info. A
node has node, parent, role, kind, messages (what its step adds), status, and value, se, n, leaves,
dropped and biased of its state; leaves have reward; and where there are any, action,
branch_reason, prior, token_ids, logprobs. `read_path` puts the conversation of a path together.

With token weights asked for, a node's weight is that of its tokens over all paths, since it is
stored once (`inv` and `own` are 1 everywhere). An advantage scheme that credits whole paths gives a
node the mean over the ends below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import StoreError
from ramify.contracts.messages import Message
from ramify.contracts.tree import Step
from ramify.edges.outbound.credited import CreditedTree, credited_trees
from ramify.edges.outbound.records import as_float, read_messages, rollout_info, write_messages
from ramify.kernel.trajectory import trajectories
from ramify.kernel.tree import Tree


def export_trees(
    job: Path,
    *,
    scored_only: bool = False,
    check: bool = False,
    weights: str | None = None,
    advantage: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of a job, by task and rollout id. Arguments and errors as of `export_verifiers`."""
    for one in credited_trees(job, scored_only=scored_only, weights=weights, advantage=advantage):
        record = _record(one)
        if check:
            _compare(record, one.tree)
        yield record


def read_path(record: dict[str, Any], leaf: int) -> tuple[Message, ...]:
    """The whole conversation from the opening to a leaf of a record, as it was recorded.

    Raises:
        KeyError, TypeError: what was given is no such record, or it has no such node.
    """
    nodes = {node["node"]: node for node in record["nodes"]}
    steps: list[tuple[Message, ...]] = []
    while leaf != -1:
        steps.append(read_messages(nodes[leaf]["messages"]))
        leaf = nodes[leaf]["parent"]
    prompt = read_messages(record["prompt"])
    return prompt + tuple(message for step in reversed(steps) for message in step)


def _compare(record: dict[str, Any], tree: Tree) -> None:
    """Raises StoreError unless every path of the record, written and read, is as it was."""
    again = msgspec.json.decode(msgspec.json.encode(record))
    for path in trajectories(tree):
        if read_path(again, path.leaf) != path.prompt + path.completion:
            raise StoreError(
                f"the path to leaf {path.leaf} of {record['tree_id']} does not read back as it "
                "was recorded"
            )


def _record(one: CreditedTree) -> dict[str, Any]:
    result, root = one.result, one.values.at(0)
    advantages = one.credit.by_node(one.values) if one.credit else None
    nodes: list[dict[str, Any]] = []
    for node in range(len(one.tree)):
        found = _node(one, node)
        if advantages is not None and node:
            found["advantage"] = as_float(advantages[node])
        if one.weights is not None and node:
            found["weight"] = float(one.weights.total(node))
        nodes.append(found)
    return {
        "example_id": one.example_id,
        "task_id": result.task_id,
        "tree_id": result.rollout_id,
        "prompt": write_messages(one.tree.opening),
        "reward": result.reward,
        "value": as_float(root.value),
        "se": root.se,
        "biased": root.biased,
        "dropped": root.dropped,
        "nodes": nodes,
        "info": rollout_info(result),
    }


def _node(one: CreditedTree, node: int) -> dict[str, Any]:
    tree, value = one.tree, one.values.at(node)
    step, parent = tree.step(node) or Step(role="task"), tree.parent(node)
    found: dict[str, Any] = {
        "node": node,
        "parent": -1 if parent is None else parent,
        "role": step.role,
        "kind": step.kind.value,
        "messages": write_messages(step.messages),
        "status": tree.status(node).value,
        "value": as_float(value.value),
        "se": value.se,
        "n": value.n,
        "leaves": value.leaves,
        "dropped": value.dropped,
        "biased": value.biased,
    }
    if not tree.children(node):
        found["reward"] = one.reward(node)
    extra = {
        "action": step.action or None,
        "branch_reason": step.branch_reason,
        "prior": step.prior,
        "token_ids": step.tokens.ids if step.tokens else None,
        "logprobs": step.tokens.logprobs if step.tokens else None,
    }
    return {**found, **{name: field for name, field in extra.items() if field is not None}}
