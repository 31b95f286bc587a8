"""kill -9 of the engine inside each step of a branch: nothing half done survives, it is resumed."""

from __future__ import annotations

import random
from pathlib import Path

import jobs
import pytest
from jobs import Job, Kill, outlives
from remains import Witness

pytestmark = pytest.mark.timeout(600)
witness = jobs.witness
BRANCH = "depth:1x2,3x2"
STEPS = ("branch", "checkpoint", "child", "execute", "verify")
"""Where the engine dies: quiescing and capturing, right after it, making children, on them."""


def kept_on_disk(home: Path) -> list[str]:
    """Layers, images and dumps of the layer store, and what engines left in it."""
    store = home / "sandbox" / "store"
    return sorted(
        str(entry.relative_to(store))
        for folder in ("layers", "images", "engines", "dumps")
        if (store / folder).is_dir()
        for entry in (store / folder).iterdir()
    )


def schedule(job: Job, tmp_path: Path, points: int, seed: int) -> None:
    rng = random.Random(seed)
    kills = [
        Kill(
            STEPS[number % len(STEPS)],
            rng.randint(1, 2 * job.planned),
            rng.choice((0, 1, 3, 7, 15, 30, 60, 120)),
        )
        for number in range(points)
    ]
    calm = outlives(job, tmp_path, kills, lambda: kept_on_disk(job.own.home))
    assert all(result.leaves == 4 for result in calm.values())


@pytest.mark.live
def test_kills_inside_branches_on_local(tmp_path: Path, witness: Witness) -> None:
    schedule(Job(witness, "local", 1, BRANCH), tmp_path, len(STEPS), 4)


@pytest.mark.proof
@pytest.mark.live
@pytest.mark.timeout(3600)
def test_a_hundred_kills_inside_branches_on_local(tmp_path: Path, witness: Witness) -> None:
    schedule(Job(witness, "local", 3, BRANCH), tmp_path, 100, 5)
    print("\n100 kills inside branches on local: nothing half done, lost, repeated or left over")
