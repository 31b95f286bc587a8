"""Text that is not Unicode, from a hostile inside, neither ends a rollout nor hides a score."""

from __future__ import annotations

from pathlib import Path

from branch_parts import PathReward, Play, WalkAgent, WalkWorld

from ramify.contracts.environment import WorldState
from ramify.contracts.messages import Message
from ramify.contracts.tree import Outcome, Step
from ramify.kernel.policy import parse_branch
from ramify.kernel.trajectory import trajectory_hash
from ramify.kernel.tree import Tree
from ramify.testing.sim import simulate


class OddWorld(WalkWorld):
    """A file in it has a name that is not UTF-8, and a service answers with half a character."""

    async def describe(self) -> WorldState:
        return WorldState({"files": {"/app/\udcff": "x"}})

    async def query(self) -> dict[str, str]:
        return {"said": "\ud83d"}


def test_odd_names_in_the_world_do_not_keep_a_score_away(tmp_path: Path) -> None:
    agent = WalkAgent(2, lambda memory, ctx: "t")
    policy = parse_branch("group:2@step:1")
    it = Play(tmp_path, agent, PathReward(lambda path: 1.0), policy, world=OddWorld())
    result = simulate(it.run, seed=1)
    assert (result.outcome, result.reward) == (Outcome.SCORED, 1.0)
    assert list(tmp_path.rglob("worlds/*.json"))


def test_a_hash_of_odd_text_is_that_of_what_is_recorded() -> None:
    """What cannot be written is replaced in the record, so the hash takes it as replaced."""
    odd, plain = Tree((Message("user", "\ud800"),)), Tree((Message("user", "?"),))
    odd.add(0, Step((Message("assistant", "a\udcff"),), action="\udfff"))
    plain.add(0, Step((Message("assistant", "a?"),), action="?"))
    assert trajectory_hash(odd) == trajectory_hash(plain)
