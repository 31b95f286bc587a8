"""Jobs of many rollouts, and what a person sees of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine

from ramify.cli import present
from ramify.cli.waiting import Waiting

BARE = ("--sandbox", "bare")


def test_a_long_list_is_cut_and_says_so(ramify: CommandLine, tasks: Path) -> None:
    assert ramify("run", tasks, *BARE, "-a", "nop", "-n", "3", "--out", "job").code == 0
    whole = ramify("tree", "job")
    assert whole.out.count("\ntasks:") == 6
    assert "more" not in whole.out
    cut = ramify("tree", "job", "--limit", "2")
    assert cut.out.count("\ntasks:") == 2
    assert cut.out.count("\nalpha-") == 2
    assert cut.out.splitlines()[-1] == "... and 4 more; --all or --limit 6 lists them"
    assert ramify("tree", "job", "--limit", "2", "--all").out == whole.out
    assert len(ramify("tree", "job", "--limit", "2", "--json").records) == 6
    assert ramify("tree", "job", "--limit", "0").code == 2


def test_the_table_at_the_end_of_a_run_is_cut(
    ramify: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(present.first_rows, "__defaults__", (2,))
    said = ramify("run", tasks, *BARE, "-a", "nop", "-n", "3", "--out", "job")
    assert said.out.count("\ntasks:") == 2
    assert "... and 4 more: ramify tree job --all" in said.out
    assert "rollouts  6/6" in said.out


@pytest.mark.namespaces
def test_scoring_again_tells_how_far_it_is(
    ramify: CommandLine, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int, int]] = []

    def count(_: Waiting, done: int, total: int) -> None:
        counted.append((done, total))

    monkeypatch.setattr(Waiting, "count", count)
    assert ramify("run", tasks, "-n", "2", "--out", "job").code == 0
    said = ramify("score", "job")
    assert said.code == 0, said.err
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
    counted.clear()
    Path("rubric.py").write_text("def always(completion) -> float:\n    return 0.5\n")
    assert ramify("score", "job", "--rubric", "rubric.py:always").code == 0
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]
