"""Export as the linear record of the `verifiers` library: one line per root-to-leaf path.

Fields: example_id, task_id, tree_id, leaf_id, prompt, completion, reward, metrics, is_completed,
is_truncated, stop_condition, error, timing, token_usage, info. Tool calls stay tool
calls, tool answers keep the role `tool`, and what was never scored has reward null. In a rollout
that branched, each record has the reward of its own leaf.

With token weights or advantages asked for, a record also has

* `spans`: for each step its node, role and kind, the range of its messages in `completion`, the
  range of its tokens, and its token_weight, advantage and loss_mask;
* where the model gave token ids: token_ids, logprobs (where given for all), token_weights,
  token_advantages and loss_mask, one entry per token that the policy wrote.

loss_mask is 0 for steps that the policy did not sample, for paths that were never scored, and where
the weight is 0; else 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import StoreError
from ramify.contracts.tree import NodeStatus, Outcome, Step, StepKind
from ramify.edges.outbound.credited import CreditedTree, credited_trees
from ramify.edges.outbound.records import as_float, read_messages, rollout_info, write_messages
from ramify.kernel.trajectory import Trajectory, trajectories


def export_verifiers(
    job: Path,
    *,
    scored_only: bool = False,
    check: bool = False,
    weights: str | None = None,
    advantage: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of a job, by task, rollout id and leaf.

    Args:
        job: the run directory.
        scored_only: leave out rollouts and leaves that were never scored.
        check: read each record back, and compare its messages with those that were recorded.
        weights: token-weight scheme: own, inv, path, frac or suffix (`kernel.weights`).
        advantage: advantage scheme (`kernel.schemes`), within each task.

    Raises:
        UsageError: no such scheme, or it cannot take these rewards.
        StoreError: the run directory cannot be read, or a record does not read back the same.
    """
    found = credited_trees(job, scored_only=scored_only, weights=weights, advantage=advantage)
    for one in found:
        for path in trajectories(one.tree):
            record = _record(one, path)
            if scored_only and record["reward"] is None:
                continue
            if one.weights or one.credit:
                record.update(_credit(one, path, record["reward"] is not None))
            if check:
                _compare(record, path)
            yield record


def _compare(record: dict[str, Any], path: Trajectory) -> None:
    """Raises StoreError unless the record, written and read, holds the path's messages."""
    again = msgspec.json.decode(msgspec.json.encode(record))
    for name, messages in (("prompt", path.prompt), ("completion", path.completion)):
        if read_messages(again[name]) != messages:
            info = record["info"]
            raise StoreError(
                f"the {name} of {info['rollout_id']} (leaf {info['leaf']}) does not read back as "
                "it was recorded"
            )


def _record(one: CreditedTree, path: Trajectory) -> dict[str, Any]:
    result, leaf = one.result, path.leaf
    alone = one.alone or path.status in (NodeStatus.OPEN, NodeStatus.INNER)
    outcome = result.outcome if alone else Outcome(path.status.value)
    usage = result.usage if alone else path.usage
    return {
        "example_id": one.example_id,
        "task_id": result.task_id,
        "tree_id": result.rollout_id,
        "leaf_id": leaf,
        "prompt": write_messages(path.prompt),
        "completion": write_messages(path.completion),
        "reward": one.reward(leaf),
        "metrics": dict(result.items),
        "is_completed": outcome is Outcome.SCORED,
        "is_truncated": outcome is Outcome.AGENT_TIMEOUT,
        "stop_condition": outcome.value,
        "error": msgspec.to_builtins(result.error) if result.error else None,
        "timing": dict(result.timings),
        "token_usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        },
        "info": {
            **rollout_info(result),
            "leaf": leaf,
            "tools": next((s.info["tools"] for s in path.steps if "tools" in s.info), None),
        },
    }


def _credit(one: CreditedTree, path: Trajectory, scored: bool) -> dict[str, Any]:
    """What the steps of a path weigh, and how good they were."""
    nodes = one.tree.path(path.leaf)
    count = len(path.steps)
    weights = one.weights.along(nodes) if one.weights else [1] * count
    advantages = one.credit.along(nodes) if one.credit else [None] * count
    spans: list[dict[str, Any]] = []
    message, token = 0, 0
    for node, step, weight, advantage in zip(
        nodes[1:], path.steps, weights, advantages, strict=True
    ):
        messages, tokens = len(step.messages), len(step.tokens.ids) if step.tokens else 0
        if messages or tokens:
            trained = scored and step.role == "agent" and step.kind is StepKind.SAMPLED
            spans.append(
                {
                    "node": node,
                    "role": step.role,
                    "kind": step.kind.value,
                    "messages": [message, message + messages],
                    "tokens": [token, token + tokens] if tokens else None,
                    "token_weight": float(weight),
                    "advantage": as_float(advantage),
                    "loss_mask": int(trained and weight != 0),
                }
            )
        message, token = message + messages, token + tokens
    return {"spans": spans, **(_tokens(path.steps, spans) if token else {})}


def _tokens(steps: tuple[Step, ...], spans: list[dict[str, Any]]) -> dict[str, Any]:
    """The same by token, over what the policy wrote."""
    written = [step.tokens for step in steps if step.tokens and step.tokens.ids]
    ranges = [(span, span["tokens"][1] - span["tokens"][0]) for span in spans if span["tokens"]]
    found: dict[str, Any] = {"token_ids": [i for tokens in written for i in tokens.ids]}
    if all(len(tokens.logprobs) == len(tokens.ids) for tokens in written):
        found["logprobs"] = [p for tokens in written for p in tokens.logprobs]
    for name, key in (
        ("token_weights", "token_weight"),
        ("token_advantages", "advantage"),
        ("loss_mask", "loss_mask"),
    ):
        found[name] = [span[key] for span, length in ranges for _ in range(length)]
    return found
