"""All attacks, by id."""

from __future__ import annotations

import attacks_export
import attacks_others
import attacks_pipeline
import attacks_python
import attacks_reward_file
import attacks_sandbox
from attack_cases import Attack

ATTACKS: dict[str, Attack] = {}
for module in (
    attacks_reward_file,
    attacks_python,
    attacks_export,
    attacks_sandbox,
    attacks_pipeline,
    attacks_others,
):
    for attack in module.ATTACKS:
        assert attack.id not in ATTACKS, f"two attacks are called {attack.id}"
        ATTACKS[attack.id] = attack
