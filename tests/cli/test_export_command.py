"""`ramify export -o FILE`: the whole of it, or what was there before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import CommandLine

BARE = ("--sandbox", "bare")


@pytest.fixture
def job(ramify: CommandLine, tasks: Path) -> Path:
    said = ramify("run", tasks, *BARE, "--out", "job")
    assert said.code == 0, said.err
    return Path("job")


def test_a_file_is_whole(ramify: CommandLine, job: Path) -> None:
    said = ramify("export", job, "-o", "out.jsonl")
    assert (said.code, said.out) == (0, "2 records in out.jsonl\n")
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in Path().iterdir() if "out" in path.name] == ["out.jsonl"]


def test_a_failure_leaves_what_was_there(
    ramify: CommandLine, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.jsonl").write_text("before\n")
    Path("half.py").write_text(
        "from ramify.contracts.errors import UsageError\n"
        "def export(job, *, scored_only=False):\n"
        "    yield {'first': 1}\n"
        "    raise UsageError('the second cannot be written')\n"
    )
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path])
    said = ramify("export", job, "-f", "half:export", "-o", "out.jsonl")
    assert said.code == 2
    assert "the second cannot be written" in said.complaint
    assert Path("out.jsonl").read_text() == "before\n"
    assert [path.name for path in Path().iterdir() if "out" in path.name] == ["out.jsonl"]


def test_modes_links_and_what_is_no_file(ramify: CommandLine, job: Path) -> None:
    Path("real.jsonl").write_text("before\n")
    Path("real.jsonl").chmod(0o640)
    Path("link.jsonl").symlink_to("real.jsonl")
    assert ramify("export", job, "-o", "link.jsonl").code == 0
    assert Path("link.jsonl").is_symlink()
    assert Path("real.jsonl").stat().st_mode & 0o777 == 0o640
    assert len(Path("real.jsonl").read_text().splitlines()) == 2
    assert ramify("export", job, "-o", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_what_a_killed_export_left_goes_with_the_next(ramify: CommandLine, job: Path) -> None:
    dead = Path(".ramify-0123456789abcd")
    dead.mkdir()
    (dead / "out.jsonl").write_text("half of a rec")
    Path(f"{dead}.lock").touch()
    assert ramify("export", job, "-o", "out.jsonl").code == 0
    assert not list(Path().glob(".ramify-*"))


def test_a_directory_that_is_not_there_is_not_made(ramify: CommandLine, job: Path) -> None:
    said = ramify("export", job, "-o", "nowhere/out.jsonl")
    assert said.code == 2
    assert "nowhere: there is no such directory" in said.complaint
    assert not Path("nowhere").exists()


def test_a_dash_is_standard_output(ramify: CommandLine, job: Path) -> None:
    said = ramify("export", job, "-o", "-")
    assert said.code == 0
    assert len(said.records) == 2
    assert not Path("-").exists()
