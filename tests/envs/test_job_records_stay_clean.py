"""What a job writes down and gives back: no secret of the environment, and each rollout once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from recorded_parts import TASKS, Saying, play

import ramify
from ramify.contracts.errors import AgentError, UsageError
from ramify.contracts.messages import Message

SECRET = "hunter2-and-more"


class Blabbing(Saying):
    async def connect(self, *given: Any, **named: Any) -> Any:
        raise AgentError(f"login with {SECRET} failed")


def broken(completion: Sequence[Message]) -> float:
    raise RuntimeError(f"401 for {SECRET}")


def broken_together(completions: Sequence[Sequence[Message]]) -> list[float]:
    raise RuntimeError(f"402 for {SECRET}")


def fine(completion: Sequence[Message]) -> float:
    return 1.0


def written_below(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize("rubric", [[broken], [fine, broken], [fine, broken_together]])
async def test_no_secret_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rubric: list[Any]
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", SECRET)
    weights = [1.0, 0.0][: len(rubric)]
    for name, agent in (("a", Blabbing()), ("b", Saying())):
        out = tmp_path / name
        report = await play(out, ramify.Rubric(rubric, weights), agent)
        again = await ramify.score_records(out, ramify.Rubric([broken_together]))
        assert len(report.results) == 6
        told = repr(report.results) + repr(again.rollouts)
        written = written_below(tmp_path)
        assert b"[redacted]" in written
        assert SECRET.encode() not in written
        assert SECRET not in told


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ([("set:a", 0), ("set:b", 0), ("set:a", 0)], "set:a"),
        ([("set:a", 0), ("set:c", 0)], "set:c"),
        ([("set:a", -1)], "-1"),
    ],
)
async def test_a_sampler_that_gives_nonsense_is_refused(
    tmp_path: Path, slots: list[tuple[str, int]], said: str
) -> None:
    """The same rollout twice at once would be run twice and counted once."""
    agent = Saying()

    def sampler(task_ids: Sequence[str]) -> list[tuple[str, int]]:
        return slots

    with pytest.raises(UsageError, match=said):
        await play(tmp_path / "job", fine, agent, sampler=sampler)
    assert not agent.asked
    assert len(TASKS) == 2
