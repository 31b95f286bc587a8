"""What a killed writer left half written in a job directory goes when it is opened next."""

from __future__ import annotations

from pathlib import Path

from ramify.engine.reading import JobRecord, Plan
from ramify.engine.store import Store

JOB = JobRecord("job", "hash", 1.0, Plan(("set:1",), 1, "nop", None, "local", 0), {}, {})


def names(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}


async def test_drafts_of_the_dead_are_gone_when_a_job_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "job"
    await (await Store.create_or_open(path, JOB)).aclose()
    before = names(path)
    (path / "blobs").mkdir(exist_ok=True)
    (path / "blobs" / ".draft").write_bytes(b"half of a payl")
    (path / ".ramify-0123456789abcd").mkdir()
    (path / ".ramify-0123456789abcd" / "events.idx").write_bytes(b"half of an ind")
    (path / ".ramify-0123456789abcd.lock").touch()
    await (await Store.create_or_open(path, JOB)).aclose()
    assert not [name for name in names(path) - before if "draft" in name or "ramify" in name]


async def test_the_draft_of_a_job_that_was_being_made_becomes_its_record(tmp_path: Path) -> None:
    path = tmp_path / "job"
    path.mkdir()
    (path / ".job.json.draft").write_bytes(b"{")
    await (await Store.create_or_open(path, JOB)).aclose()
    assert (path / "job.json").stat().st_size > 1
    assert not (path / ".job.json.draft").exists()
