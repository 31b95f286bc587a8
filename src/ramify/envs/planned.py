"""`--branch plan`: the first rollouts of a task are pilots, the others branch where it pays."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ramify.contracts.context import Clock
from ramify.contracts.events import LogEvent, Observer, Phase
from ramify.contracts.result import RolloutResult, WorkItem
from ramify.contracts.tree import Step
from ramify.engine.reading import JobReader
from ramify.kernel.planner import Pilot, pilot, plan_branches
from ramify.kernel.policy import PILOT_REASON, AtSteps, BranchPolicy, PilotTree
from ramify.kernel.tree import Tree, tree_from_events

PILOTS = 4
"""Pilot trees of each task."""

PLAN_MADE = "a plan for the branches of a task"
"""Message of the LogEvent that tells a plan; its field `why` says it in words."""


@dataclass(slots=True)
class PlannedBranches:
    """Decides where the rollouts of one job branch, from what its pilots showed.

    Attributes:
        job: the run directory: pilots that it holds already count.
        roots: rollouts per task.
        observer, clock: who is told of a plan, and when.
    """

    job: Path
    roots: int
    observer: Observer
    clock: Clock
    _running: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _before: _Before | None = None
    _pilots: dict[str, dict[str, Pilot]] = field(default_factory=dict[str, dict[str, Pilot]])
    _plans: dict[str, BranchPolicy | None] = field(default_factory=dict[str, "BranchPolicy | None"])
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def policy(self, item: WorkItem) -> BranchPolicy | None:
        """The policy of a rollout that begins now: a pilot's, a planned one, or none (chains).

        No more pilots run than are lacking: the others wait for the plan, or for one of those to
        end without having become a pilot. `ended` must be called for each that was given one.
        """
        while True:
            async with self._lock:
                pilots = await self._pilots_of(item.task_id)
                if len(pilots) >= PILOTS:
                    if item.task_id not in self._plans:
                        self._plans[item.task_id] = self._decide(item, list(pilots.values()))
                    return self._plans[item.task_id]
                running = self._running[item.task_id]
                if len(pilots) + len(running) < PILOTS:
                    running.add(item.rollout_id)
                    return PilotTree()
                changed = self._changed
            await changed.wait()

    async def _pilots_of(self, task_id: str) -> dict[str, Pilot]:
        if task_id not in self._pilots:
            if self._before is None:
                self._before = await asyncio.to_thread(_Before, self.job)
            self._pilots[task_id] = await asyncio.to_thread(self._before.pilots, task_id)
        return self._pilots[task_id]

    def _decide(self, item: WorkItem, pilots: list[Pilot]) -> BranchPolicy | None:
        plan = plan_branches(pilots, chains=max(self.roots - PILOTS, PILOTS))
        fields = {"task": item.task_id, "why": plan.why, "branches": list(plan.branches)}
        now = self.clock.now()
        self.observer.emit(LogEvent(item.rollout_id, now, "info", PLAN_MADE, fields))
        return AtSteps(dict(plan.branches), "plan") if plan.branches else None

    def finished(self, result: RolloutResult, tree: Tree) -> None:
        """Take note of what a rollout came to."""
        if _is_pilot(result, tree):
            pilots = self._pilots.setdefault(result.task_id, {})
            pilots[result.rollout_id] = _as_pilot(result, tree)

    def ended(self, item: WorkItem) -> None:
        """An attempt runs no more, whatever it came to: those that wait look again."""
        self._running[item.task_id].discard(item.rollout_id)
        self._changed.set()
        self._changed = asyncio.Event()


class _Before:
    """What a run directory held when this engine opened it. Its methods block."""

    def __init__(self, job: Path) -> None:
        self._reader = JobReader(job)
        self._branched: dict[str, list[RolloutResult]] = defaultdict(list)
        for result in self._reader.results.values():
            if result.leaves > 1:
                self._branched[result.task_id].append(result)

    def pilots(self, task_id: str) -> dict[str, Pilot]:
        """Pilots of a task, by rollout id."""
        found: dict[str, Pilot] = {}
        for result in self._branched.get(task_id, ()):
            tree = tree_from_events(self._reader.events(result.rollout_id))
            if _is_pilot(result, tree):
                found[result.rollout_id] = _as_pilot(result, tree)
        return found


def _is_pilot(result: RolloutResult, tree: Tree) -> bool:
    steps = (tree.step(node) or Step() for node in range(len(tree)))
    return result.reward is not None and any(s.branch_reason == PILOT_REASON for s in steps)


def _as_pilot(result: RolloutResult, tree: Tree) -> Pilot:
    before = (Phase.SETUP, Phase.START, Phase.PROVISION, Phase.READINESS, Phase.CONNECT)
    setup = sum(result.timings.get(phase, 0.0) for phase in before)
    return pilot(tree, setup_sec=setup)
