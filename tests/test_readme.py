"""What the README shows is true: its Python runs, its commands exist, its tree is the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.namespaces
@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_runs(block: str, tmp_path: Path) -> None:
    code = block.replace('"examples/tasks"', repr(str(ROOT / "examples" / "tasks")))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1.0 runs/")


def test_commands_exist() -> None:
    commands = set(re.findall(r"\bramify ([a-z]+)", README))
    listed = subprocess.run(
        [sys.executable, "-m", "ramify.cli.main", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert commands
    assert [name for name in commands if f"  {name} " not in listed] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.M)] == []


def test_the_tree_is_the_tree() -> None:
    block = README[README.rindex("src/ramify/\n") :]
    rooms = re.findall(r"^  ([a-z.]+)/? ", block[: block.index("```")], re.M)
    there = {path.name for path in (ROOT / "src" / "ramify").iterdir()}
    assert {room for room in rooms if room not in there} == set()
    shown = {path for path in there if (ROOT / "src/ramify" / path).is_dir()}
    assert shown - {"__pycache__"} == {room for room in rooms if "." not in room}
