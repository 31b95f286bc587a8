"""Priors of a branch by hand are refused where they are given, not when the result is made."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from recorded_parts import TASKS, Saying, sandboxes

import ramify
from ramify.contracts.errors import UsageError
from ramify.contracts.tree import Fidelity
from ramify.engine.reading import read_results


def fine() -> float:
    return 1.0


@pytest.mark.parametrize("priors", [[0.9, 0.9], [-0.1, 0.5], [math.nan, 0.5], [1.0]])
async def test_priors_that_are_none(tmp_path: Path, priors: list[float]) -> None:
    options = ramify.RunOptions(out=tmp_path / "job", fidelity=Fidelity.FRESH)
    tasks = ramify.MemoryTaskset("set", TASKS[:1])
    async with ramify.open_rollout(
        tasks, agent=Saying(), sandbox=sandboxes(), reward=fine, options=options
    ) as root:
        await root.prompt()
        with pytest.raises(UsageError):
            await root.branch(2, priors=priors)
        assert (await root.score()).reward == 1.0
    (result,) = read_results(tmp_path / "job").values()
    assert result.reward == 1.0
