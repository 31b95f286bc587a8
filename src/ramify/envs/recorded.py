"""Recorded rollouts as rewards see them: their leaves, each with a context, and no sandbox."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify.contracts.config import RolloutConfig
from ramify.contracts.context import CancelScope, Clock, Context
from ramify.contracts.errors import (
    InvalidRewardError,
    RamifyError,
    RewardFailedError,
    UnsupportedError,
)
from ramify.contracts.events import AnyEvent, Observer, Phase, RewardParts
from ramify.contracts.messages import Message, Usage
from ramify.contracts.metering import metering
from ramify.contracts.model import Model
from ramify.contracts.result import ErrorInfo, RolloutResult
from ramify.contracts.reward import Described, GroupReward, Reward, RewardEvent, VerifyResult
from ramify.contracts.task import Task
from ramify.contracts.tree import NodeStatus, Outcome, RolloutNode, Step
from ramify.engine.reading import JobReader
from ramify.engine.revisions import LeafScore, Revision
from ramify.kernel.grove import Leaf
from ramify.kernel.outcome import Verdict, classify
from ramify.kernel.total import total
from ramify.kernel.tree import Tree, tree_from_events

_REWARD = "reward"
_NO_SANDBOX = " (it is scored from a record: there is no sandbox any more)"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every context of a record has in common.

    Attributes:
        clock, cancel, observer: the caller's.
        model: the run's policy, if it is there.
        resources: objects that rewards may ask for by name.
        config: limits and sampling of the recorded rollouts.
    """

    clock: Clock
    cancel: CancelScope
    observer: Observer
    model: Model | None = None
    resources: Mapping[str, object] = field(default_factory=dict[str, object])
    config: RolloutConfig = RolloutConfig()

    def context(self, task: Task, rollout_id: str, seed: int, artifacts: Path) -> Context:
        """The context of one leaf."""
        return Context(
            task=task,
            config=self.config,
            rollout_id=rollout_id,
            clock=self.clock,
            rng=random.Random(seed),
            cancel=self.cancel,
            observer=self.observer,
            recorder=_Ended(),
            artifacts=artifacts,
            model=self.model,
            resources=self.resources,
        )


class _Ended:
    """The recorder of a rollout that has ended."""

    async def prompt(self, messages: tuple[Message, ...]) -> None:
        raise UnsupportedError("a rollout that has ended records nothing more")

    async def step(self, step: Step) -> int:
        raise UnsupportedError("a rollout that has ended records nothing more")


@dataclass(frozen=True, slots=True)
class RecordedLeaf:
    """The end of a path: what it came to, and what was known of its reward.

    `outcome` is the one it has when it is scored (None: what ended it was not the scoring, so it
    is never scored). `first` are the parts of its reward that were computed when it ended.
    """

    node: int
    status: Outcome
    outcome: Outcome | None
    ctx: Context
    first: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RecordedRollout:
    """A rollout as it was recorded.

    Attributes:
        result: what came of it.
        tree: what happened.
        leaves: its ends, by id.
        minimum: the least reward of its task.
    """

    result: RolloutResult
    tree: Tree
    leaves: Sequence[RecordedLeaf]
    minimum: float

    @property
    def scorable(self) -> list[RecordedLeaf]:
        """Leaves that can be scored."""
        return [leaf for leaf in self.leaves if leaf.outcome is not None]

    def least(self, outcome: Outcome) -> tuple[RewardEvent, ...]:
        """The signals of a leaf without a score of its own: an invalid one earns the minimum."""
        return (RewardEvent(_REWARD, self.minimum),) if outcome is Outcome.INVALID else ()

    def revised(
        self, found: Mapping[int, VerifyResult | Verdict], reward: Reward, *, once: bool = False
    ) -> Revision:
        """The rollout with new scores of its leaves, by node.

        `once`: what was computed when the rollout ended, with its sandbox at hand, still counts;
        only the other parts are taken from the new scores.
        """
        ends: list[Leaf] = []
        scores: list[LeafScore] = []
        for leaf in self.leaves:
            verified = found.get(leaf.node)
            if verified is None or leaf.outcome is None:
                ends.append(Leaf(leaf.node, _verdict(leaf.status, self.result), None))
                continue
            if isinstance(verified, Verdict):
                ends.append(Leaf(leaf.node, verified, None))
                least = self.least(verified.outcome)
                scores.append(LeafScore(leaf.node, verified.outcome, least))
                continue
            verified = _with_first(verified, leaf, reward) if once else verified
            verdict = _verdict(leaf.outcome, self.result)
            if verified.reward is None:
                why = "; ".join(f"{k}: {v}" for k, v in verified.errors.items())
                verdict = classify(RewardFailedError(why or "it has no reward"), Phase.VERIFY)
            ends.append(Leaf(leaf.node, verdict, verified))
            scores.append(_leaf_score(self.result, leaf, leaf.outcome, verdict, verified))
        return Revision(_result(self, ends), tuple(scores))


def read_rollout(
    reader: JobReader, job: Path, result: RolloutResult, task: Task | None, around: Surroundings
) -> RecordedRollout:
    """Read a rollout; without a task, that is what was recorded of it: its prompt.

    Blocks; raises StoreError.
    """
    events = list(reader.events(result.rollout_id))
    tree = tree_from_events(events)
    task = task or Task(result.task_id, input=asked(tree.opening))
    parts = _parts(events)
    root = job / "rollouts" / result.rollout_id
    leaves: list[RecordedLeaf] = []
    for node in tree.leaves():
        status = tree.status(node)
        if status in (NodeStatus.OPEN, NodeStatus.INNER):
            continue
        word = Outcome(status.value)
        known = parts.get(node)
        outcome = None
        if word.counts and word is not Outcome.INVALID:
            outcome = word
        elif known is not None and known.missing:
            outcome = known.outcome
        ctx = around.context(task, result.rollout_id, result.seed, _artifacts(tree, node, root))
        leaves.append(RecordedLeaf(node, word, outcome, ctx, known.items if known else {}))
    package = task.package
    minimum = package.verifier.reward_range[0] if package else 0.0
    return RecordedRollout(result, tree, leaves, minimum)


def asked(opening: Sequence[Message]) -> str:
    """What the user says first."""
    return next((message.content for message in opening if message.role == "user"), "")


def _parts(events: Sequence[AnyEvent]) -> dict[int, RewardParts]:
    return {event.node: event for event in events if isinstance(event, RewardParts)}


def _artifacts(tree: Tree, leaf: int, root: Path) -> Path:
    """Where the path to a leaf kept its files: those of its last branch, or the rollout's own."""
    for node in reversed(tree.path(leaf)):
        step = tree.step(node)
        if step is not None and step.role == "branch" and "child" in step.info:
            return root / "branches" / str(node)
    return root


def _verdict(outcome: Outcome, result: RolloutResult) -> Verdict | None:
    """What ended a path. Of several only the first one's error is on record."""
    if outcome is Outcome.SCORED:
        return None
    error = result.error
    if error is None or result.unscored_by_us:
        error = ErrorInfo(outcome.value, f"a path ended with the outcome {outcome}")
    return Verdict(outcome, error, result.invalid_reason)


def _leaf_score(
    result: RolloutResult,
    leaf: RecordedLeaf,
    outcome: Outcome,
    verdict: Verdict | None,
    found: VerifyResult,
) -> LeafScore:
    events = found.events
    if found.reward is not None and not any(event.name == _REWARD for event in events):
        events = (*events, RewardEvent(_REWARD, found.reward))
    parts = None
    if found.errors or found.reward is None:
        parts = RewardParts(
            rollout_id=result.rollout_id,
            ts=result.finished_at,
            node=leaf.node,
            outcome=outcome,
            items=found.items,
            errors=found.errors,
            missing=found.reward is None,
        )
    return LeafScore(leaf.node, verdict.outcome if verdict else Outcome.SCORED, events, parts)


def _result(rollout: RecordedRollout, ends: Sequence[Leaf]) -> RolloutResult:
    found = total(rollout.tree, ends, rollout.minimum)
    verified = found.verified
    return msgspec.structs.replace(
        rollout.result,
        outcome=found.outcome,
        reward=found.reward,
        invalid_reason=found.verdict.reason if found.verdict else None,
        error=found.verdict.error if found.verdict else None,
        grader_isolation=verified.grader_isolation if verified else None,
        items=verified.items if verified else {},
        leaves=len(ends),
        reward_se=found.se,
        biased=found.biased,
        dropped=found.dropped,
        reward_errors=verified.errors if verified else {},
        pending=(),
    )


def _with_first(found: VerifyResult, leaf: RecordedLeaf, reward: Reward) -> VerifyResult:
    """A score in which what was known of a leaf before stands, and its reward out of both.

    Only for rubrics, which say what each part weighs; of any other reward the new score stands.
    """
    if not isinstance(reward, Described) or not leaf.first:
        return found
    entries = reward.describe().entries
    once = {e.name for e in entries if e.kind != "group" and e.name in leaf.first}
    mine = tuple(f"{name}." for name in once)

    def stands(name: str) -> bool:
        return name in once or name.startswith(mine)

    later = {name: value for name, value in found.items.items() if not stands(name)}
    items = {**{name: value for name, value in leaf.first.items() if stands(name)}, **later}
    weighed = [(entry.weight, items.get(entry.name)) for entry in entries if entry.weight]
    terms = [weight * value for weight, value in weighed if value is not None]
    return VerifyResult(
        reward=math.fsum(terms) if len(terms) == len(weighed) else None,
        items=items,
        # Signals that were given when the rollout ended are on record; these come to them.
        events=tuple(e for e in found.events if not stands(e.name) and e.name != _REWARD),
        grader_isolation=found.grader_isolation,
        details=found.details,
        errors={name: text for name, text in found.errors.items() if not stands(name)},
    )


def _explained(found: VerifyResult | Verdict) -> VerifyResult | Verdict:
    """The same; an error that comes of the missing sandbox says so."""
    if isinstance(found, Verdict):
        return found
    errors = {
        name: text + _NO_SANDBOX if "'NoneType' object has no attribute" in text else text
        for name, text in found.errors.items()
    }
    return found if errors == found.errors else msgspec.structs.replace(found, errors=errors)


async def score_together(
    rollouts: Sequence[RecordedRollout], reward: Reward, *, once: bool = False
) -> list[Revision]:
    """Score the leaves of rollouts of one task: all of them together where the reward compares.

    Never raises what a reward raises: that is an error of the leaf it was raised for, or of all
    that it compared.
    """
    flat = [(rollout, leaf) for rollout in rollouts for leaf in rollout.scorable]
    nodes = [rollout.tree.node(leaf.node) for rollout, leaf in flat]
    contexts = [leaf.ctx for _, leaf in flat]
    with metering() as meter:
        found = await score_nodes(reward, nodes, contexts)
    by_leaf = {
        (rollout.result.rollout_id, leaf.node): score
        for (rollout, leaf), score in zip(flat, found, strict=True)
    }
    revisions = [
        rollout.revised(
            {leaf.node: by_leaf[rollout.result.rollout_id, leaf.node] for leaf in rollout.scorable},
            reward,
            once=once,
        )
        for rollout in rollouts
    ]
    used = [meter.used, *[Usage()] * len(revisions)]
    return [
        _graded(revision, more, once=once) for revision, more in zip(revisions, used, strict=False)
    ]


def _graded(revision: Revision, used: Usage, *, once: bool) -> Revision:
    """With what judging it cost: `once`, that comes to what it cost when the rollout ended."""
    result = revision.result
    grading = result.grading + used if once else used
    return msgspec.structs.replace(
        revision, result=msgspec.structs.replace(result, grading=grading)
    )


async def score_nodes(
    reward: Reward,
    nodes: Sequence[RolloutNode],
    contexts: Sequence[Context],
    *,
    compare: bool = True,
) -> Sequence[VerifyResult | Verdict]:
    """Score nodes, at once or together; a Verdict for evidence that is invalid.

    `compare`: these are all the siblings there are, where the reward compares some.
    """
    if compare and isinstance(reward, GroupReward) and reward.compares:
        return [_explained(score) for score in await _group(reward, nodes, contexts)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_one(reward, node, ctx))
            for node, ctx in zip(nodes, contexts, strict=True)
        ]
    return [_explained(task.result()) for task in tasks]


async def _group(
    reward: GroupReward, nodes: Sequence[RolloutNode], contexts: Sequence[Context]
) -> Sequence[VerifyResult | Verdict]:
    try:
        found = [_checked(one) for one in await reward.score_group(nodes, contexts)]
        if len(found) != len(nodes):
            raise RewardFailedError(f"it gave {len(found)} scores for {len(nodes)} siblings")
    except Exception as error:  # whatever a reward does, others must not lose their scores
        return [_failed(error)] * len(nodes)
    return found


async def _one(reward: Reward, node: RolloutNode, ctx: Context) -> VerifyResult | Verdict:
    try:
        return _checked(await reward.score(node, ctx))
    except InvalidRewardError as error:
        return classify(error, Phase.VERIFY)
    except Exception as error:  # the same
        return _failed(error)


def _checked(found: object) -> VerifyResult:
    """What a reward gave, which may be somebody's own class. Raises RewardFailedError."""
    if not isinstance(found, VerifyResult):
        raise RewardFailedError(f"it gave {found!r:.200}, which is no VerifyResult")
    return found


def _failed(error: Exception) -> VerifyResult:
    text = str(error) if isinstance(error, RamifyError) else f"{type(error).__name__}: {error}"
    return VerifyResult(None, errors={_REWARD: text})
