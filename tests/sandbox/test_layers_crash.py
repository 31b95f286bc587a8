"""A layer store whose engine is killed anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_an_engine_may_die_between_any_two_steps(tmp_path: Path) -> None:
    program = Path(__file__).with_name("layer_crashes.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    places, *wrong = done.stdout.split("\n")
    assert int(places) > 100
    assert [text for text in wrong if text] == []
