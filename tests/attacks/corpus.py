"""All attacks, by id."""

from __future__ import annotations

import attacks_python
import attacks_reward_file
from attack_cases import Attack

ATTACKS: dict[str, Attack] = {}
for module in (attacks_reward_file, attacks_python):
    for attack in module.ATTACKS:
        assert attack.id not in ATTACKS, f"two attacks are called {attack.id}"
        ATTACKS[attack.id] = attack
