"""Spaces that disagree: a result that looks right, reached by actions or thoughts that do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, cast

import msgspec

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError
from ramify.contracts.reward import (
    Described,
    Granularity,
    GroupReward,
    Reward,
    RewardEvent,
    RubricManifest,
    Space,
    VerifyResult,
)
from ramify.contracts.tree import RolloutNode

_WATCHED = (Space.ACTION, Space.REASONING, Space.MEMORY)


class Disagreement(msgspec.Struct, frozen=True):
    """What the spaces say of one trajectory, each from 0 to 1.

    Attributes:
        spaces: space → the mean of its signals for the whole trajectory, or of those for steps
            where there are no others.
        against: spaces that speak against a good output.
        gap: how far apart the highest and the lowest are.
    """

    spaces: dict[str, float]
    against: tuple[str, ...]
    gap: float

    @property
    def suspect(self) -> bool:
        """Whether the output is good and another space says otherwise."""
        return bool(self.against)


def disagreement(
    events: Iterable[RewardEvent], *, high: float = 0.8, low: float = 0.5
) -> Disagreement:
    """Compare the spaces. Signals that are not from 0 to 1 (counts, times) are left out.

    Args:
        events: of one trajectory.
        high: from where on an output is good.
        low: up to where another space speaks against it.

    Raises:
        ConfigError: `low` is not below `high`.
    """
    if not low < high:
        raise ConfigError(f"low ({low}) must be below high ({high})")
    found: dict[tuple[Space, Granularity], list[float]] = defaultdict(list)
    for event in events:
        if 0.0 <= event.value <= 1.0:
            found[event.space, event.granularity].append(event.value)
    spaces: dict[str, float] = {}
    for space in Space:
        whole = found.get((space, Granularity.TERMINAL)) or found.get((space, Granularity.STEP))
        if whole:
            spaces[space.value] = fmean(whole)
    good = spaces.get(Space.OUTPUT.value, 0.0) >= high
    against = tuple(each.value for each in _WATCHED if good and spaces.get(each.value, 1.0) <= low)
    gap = max(spaces.values()) - min(spaces.values()) if spaces else 0.0
    return Disagreement(spaces, against, gap)


def with_suspicion(result: VerifyResult, *, high: float = 0.8, low: float = 0.5) -> VerifyResult:
    """A result that also says whether its spaces disagree: the metrics `suspect` (1 or 0) and
    `space_gap`, and what speaks against it in the details. The reward is as it was."""
    found = disagreement(result.events, high=high, low=low)
    items = {**result.items, "suspect": float(found.suspect), "space_gap": found.gap}
    details = {**result.details, "spaces": _merged(result.details.get("spaces"), found.spaces)}
    if found.suspect:
        said = result.details.get("suspect")
        known = cast("Sequence[Any]", said) if isinstance(said, list | tuple) else [said]
        others = [each for each in known if each and each not in found.against]
        details["suspect"] = [*others, *found.against]
    return msgspec.structs.replace(result, items=items, details=details)


def _merged(given: Any, spaces: dict[str, float]) -> dict[str, Any]:
    """What we say of the spaces, beside what a part of the reward calls by that name."""
    if given is None:
        return dict(spaces)
    if isinstance(given, Mapping):
        return {**cast("Mapping[str, Any]", given), **spaces}
    return {"given": given, **spaces}


class Suspicion:
    """Any reward, with a word on whether its spaces disagree.

    Implements `GroupReward` and `Described`.

    Args:
        reward: what scores; mostly a rubric with functions of several spaces.
        high, low: see `disagreement`.

    Raises:
        ConfigError: `low` is not below `high`.
    """

    def __init__(self, reward: Reward, *, high: float = 0.8, low: float = 0.5) -> None:
        disagreement((), high=high, low=low)
        self._reward, self._high, self._low = reward, high, low

    @property
    def compares(self) -> bool:
        """Whether the reward compares siblings."""
        return isinstance(self._reward, GroupReward) and self._reward.compares

    def describe(self) -> RubricManifest:
        """What the reward consists of; without entries where it does not say."""
        if isinstance(self._reward, Described):
            return self._reward.describe()
        return RubricManifest(getattr(self._reward, "name", type(self._reward).__name__), ())

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Score, and compare the spaces. Raises what the reward raises."""
        return self._marked(await self._reward.score(node, ctx))

    async def score_group(
        self, nodes: Sequence[RolloutNode], contexts: Sequence[Context]
    ) -> Sequence[VerifyResult]:
        """Score siblings, and compare the spaces of each. Raises what the reward raises."""
        if isinstance(self._reward, GroupReward):
            return [self._marked(r) for r in await self._reward.score_group(nodes, contexts)]
        return [await self.score(n, c) for n, c in zip(nodes, contexts, strict=True)]

    def _marked(self, result: VerifyResult) -> VerifyResult:
        return with_suspicion(result, high=self._high, low=self._low)
