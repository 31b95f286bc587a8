"""All attacks, by id."""

from __future__ import annotations

import random

import attacks_export
import attacks_git
import attacks_metadata
import attacks_network
import attacks_others
import attacks_pipeline
import attacks_python
import attacks_readers
import attacks_reward_file
import attacks_sandbox
import attacks_tests
import attacks_world
from attack_cases import Attack

ATTACKS: dict[str, Attack] = {}
for module in (
    attacks_reward_file,
    attacks_readers,
    attacks_tests,
    attacks_python,
    attacks_export,
    attacks_sandbox,
    attacks_pipeline,
    attacks_git,
    attacks_network,
    attacks_metadata,
    attacks_others,
    attacks_world,
):
    for attack in module.ATTACKS:
        assert attack.id not in ATTACKS, f"two attacks are called {attack.id}"
        ATTACKS[attack.id] = attack


def sample(count: int) -> set[str]:
    """Ids of so many attacks, the same every time; at least two of each group."""
    rng = random.Random(7)
    groups: dict[str, list[str]] = {}
    for each in ATTACKS.values():
        groups.setdefault(each.group, []).append(each.id)
    chosen = {name for ids in groups.values() for name in rng.sample(ids, min(2, len(ids)))}
    rest = sorted(ATTACKS.keys() - chosen)
    return chosen | set(rng.sample(rest, count - len(chosen)))
