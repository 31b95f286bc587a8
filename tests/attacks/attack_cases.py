"""What an attack is, and the one way in which each of them is shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from attack_ground import Ground

SCORED_LOW, INVALID, REFUSED, MASKED, BLOCKED = (
    "scored low",
    "invalid",
    "refused",
    "masked",
    "blocked",
)
LOW = (SCORED_LOW, INVALID)
"""For attacks that may end either way, by when they strike; both are the least reward."""


@dataclass(frozen=True)
class Attack:
    """One exploit.

    `undefended` says whether it pays where nobody defends: a reward, a leak, a way out. `ramify`
    executes it against us and says what became of it, one of `expected`, and whatever it saw.
    `honest` gives the reward of an honest solution.
    """

    id: str
    shows: str
    expected: tuple[str, ...]
    undefended: Callable[[Ground], Awaitable[bool]]
    ramify: Callable[[Ground], Awaitable[tuple[str, object]]]
    honest: Callable[[Ground], Awaitable[float | None]]

    @property
    def group(self) -> str:
        return self.id[0]


async def prove(attack: Attack, ground: Ground) -> None:
    """The attack pays undefended; against us it pays, leaks and touches nothing; honesty pays."""
    assert await attack.undefended(ground), f"{attack.id} pays nobody: it is no attack"
    before = ground.digest()
    became, seen = await attack.ramify(ground)
    assert became in attack.expected, f"{attack.id}: {attack.shows}: {became} ({seen})"
    assert ground.leaks(seen) == [], attack.id
    assert ground.digest() == before, f"{attack.id} changed files of the host"
    reward = await attack.honest(ground)
    assert reward == 1.0, f"{attack.id}: an honest solution scored {reward}"
