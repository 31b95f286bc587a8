"""Several judges as one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from ramify.contracts.errors import ConfigError, InvalidRewardError, RewardFailedError
from ramify.contracts.model import Model
from ramify.planes.reward.judge_verdict import Assessor, Combine, Verdict, united


class JudgePanel:
    """Asks several judges at once. Implements `Assessor`.

    Its verdict says how far they agree, and what each of them said.

    Args:
        judges: with names and the same criteria.
        combine: how their verdicts become one, per criterion and for the score.
        quorum: how many must answer; by default all. Who does not is named in the verdict.
        name: what it is called.

    Raises:
        ConfigError: no judges, two of one name, or a quorum out of range.
    """

    def __init__(
        self,
        judges: Sequence[Assessor],
        *,
        combine: Combine = "median",
        quorum: int | None = None,
        name: str = "panel",
    ) -> None:
        names = [judge.name for judge in judges]
        if not judges or len(set(names)) < len(names):
            raise ConfigError(f"a panel needs judges, each of a name of its own, not {names}")
        self._quorum = len(judges) if quorum is None else quorum
        if not 1 <= self._quorum <= len(judges):
            raise ConfigError(f"a quorum of {quorum} cannot be had of {len(judges)} judges")
        self._judges, self._name = tuple(judges), name
        self._combine: Combine = combine

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    def asks(self, model: Model | None) -> bool:
        """Whether one of the judges would ask this very model without leave."""
        return any(judge.asks(model) for judge in self._judges)

    async def assess(self, material: Mapping[str, str]) -> Verdict:
        """Judge some material.

        Raises: fewer than the quorum answered: InvalidRewardError (the material kept one of them
        from it), else RewardFailedError.
        """
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_try(judge, material)) for judge in self._judges]
        found = {j.name: task.result() for j, task in zip(self._judges, asked, strict=True)}
        voices = [each for each in found.values() if isinstance(each, Verdict)]
        failed = {name: str(e) for name, e in found.items() if isinstance(e, Exception)}
        if len(voices) < self._quorum:
            for each in found.values():
                if isinstance(each, InvalidRewardError):
                    raise each
            raise RewardFailedError(
                f"{self._name}: {len(voices)} of {len(found)} judges gave a verdict, and "
                f"{self._quorum} are needed; {'; '.join(failed.values())}"
            )
        if any(voice.criteria.keys() != voices[0].criteria.keys() for voice in voices):
            raise ConfigError(f"the judges of {self._name} have different criteria")
        return msgspec.structs.replace(united(voices, self._combine, self._name), failed=failed)


async def _try(
    judge: Assessor, material: Mapping[str, str]
) -> Verdict | RewardFailedError | InvalidRewardError:
    try:
        return await judge.assess(material)
    except (RewardFailedError, InvalidRewardError) as error:
        return error
