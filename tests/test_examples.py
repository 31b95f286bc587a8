"""Every numbered example runs, and says what its text promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "01_run": "mean reward 1.0",
    "02_stream": "verified in",
    "03_function_reward": "sums:wrong   0.0",
    "04_sandbox": "['parent', 'child 2', '']",
    "05_own_agent": "2 scored, mean reward 0.0",
    "06_engine": "50 results taken",
    "07_trees": "roles ['assistant', 'tool']",
    "08_chat_agent": "reward 1.0 after 3 model calls",
    "09_branch": "going on with 'the first five': top.txt has 5 lines",
    "10_rubric": "sums:wrong 0.3",
}


def test_every_example_has_its_line_here() -> None:
    files = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert [file.stem for file in files] == sorted(SAYS)
    assert all(len(file.read_text().splitlines()) <= 60 for file in files)


@pytest.mark.namespaces
@pytest.mark.parametrize("name", sorted(SAYS))
def test_example(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
