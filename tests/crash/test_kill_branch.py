"""kill -9 of the engine inside each step of a branch: nothing half done survives, it is resumed."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from remains import Witness
from test_kill_nine import PLANNED, engine, fate, finished

from ramify.engine.reading import read_results

BRANCH = "depth:1x2,3x2"
STEPS = ("branch", "checkpoint", "child", "execute", "verify")
"""Where the engine dies: quiescing and capturing, right after it, making children, on them."""


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    before = os.environ.get("DOOMED_BRANCH")
    os.environ["DOOMED_BRANCH"] = BRANCH
    with Witness(tmp_path / "home") as watching:
        yield watching
    os.environ.pop("DOOMED_BRANCH")
    if before is not None:
        os.environ["DOOMED_BRANCH"] = before


def kept_on_disk(home: Path) -> list[str]:
    """Layers, images and dumps of the layer store, and what engines left in it."""
    store = home / "sandbox" / "store"
    return sorted(
        str(entry.relative_to(store))
        for folder in ("layers", "images", "engines", "dumps")
        if (store / folder).is_dir()
        for entry in (store / folder).iterdir()
    )


def schedule(sandbox: str, tmp_path: Path, points: int, seed: int, own: Witness) -> None:
    rng = random.Random(seed)
    calm = finished(own, sandbox, tmp_path / "calm")
    expected = Counter(map(fate, calm.values()))
    assert all(result.leaves == 4 for result in calm.values())
    assert own.left_after() == []
    at_rest = kept_on_disk(own.home)
    for number in range(points):
        step = STEPS[number % len(STEPS)]
        out = tmp_path / f"job-{number}"
        nth, delay = rng.randint(1, 2 * PLANNED), rng.choice((0, 1, 3, 7, 15, 30, 60, 120))
        what = f"kill {number} in {step}, the {nth}th, after {delay} ms"
        killed = engine(own, sandbox, str(out), step, str(nth), str(delay))
        assert killed.returncode in ((-9, 0) if delay else (-9,)), f"{what}: {killed.stderr}"
        assert own.left_after() == [], f"left over two seconds after {what}: {killed.stderr}"
        before = read_results(out)
        after = finished(own, sandbox, out)
        assert Counter(map(fate, after.values())) == expected, what
        assert before.items() <= after.items(), f"{what}: a finished rollout ran again"
        assert own.left_after() == [], f"left over after the run that followed {what}"
        assert kept_on_disk(own.home) == at_rest, f"layers leaked by {what}"


@pytest.mark.live
def test_kills_inside_branches_on_local(tmp_path: Path, witness: Witness) -> None:
    schedule("local", tmp_path, 5, 4, witness)


@pytest.mark.proof
@pytest.mark.live
def test_a_hundred_kills_inside_branches_on_local(tmp_path: Path, witness: Witness) -> None:
    schedule("local", tmp_path, 100, 5, witness)
    print("\n100 kills inside branches on local: nothing half done, lost, repeated or left over")
