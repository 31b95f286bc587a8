"""The program as a user meets it: called in this process, or as one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ramify.cli.main import main

TASK_TOML = """
version = "1.0"
[environment]
docker_image = "debian:bookworm"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
outputs = ["answer.txt"]
isolation = "{level}"
"""
TEST_SH = """#!/bin/sh
if [ "$(cat answer.txt)" = {word} ]; then r=1; else r=0; fi
echo $r > "$RAMIFY_ROOT/logs/verifier/reward.txt"
"""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Standard output as JSON Lines: every line of it must be one."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line that it said about what is wrong."""
        assert "Traceback" not in self.err + self.out
        lines = [line for line in self.err.splitlines() if line.startswith("ramify: ")]
        assert len(lines) == 1, self.err
        return lines[0]


class CommandLine:
    """Calls `ramify` in this process; several times quicker than starting it anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> Said:
        self._capsys.readouterr()
        self._patch.setattr(sys, "argv", ["ramify", *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as ending:
                main()
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        said = self._capsys.readouterr()
        assert isinstance(ending.value.code, int)
        return Said(ending.value.code, said.out, said.err)


def program(*arguments: str | Path) -> list[str]:
    """The command line of `ramify` as a process of its own."""
    return [sys.executable, "-m", "ramify.cli.main", *map(str, arguments)]


def started(
    *arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`ramify`, running."""
    return subprocess.Popen(
        program(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})}, **options,
    )  # fmt: skip


def make_task(root: Path, name: str = "alpha", level: str = "outputs", word: str = "42") -> Path:
    """A task directory whose solution writes the right word."""
    place = root / name
    files = {
        "task.toml": TASK_TOML.format(level=level),
        "instruction.md": f"Write {word} into answer.txt.\n",
        "tests/test.sh": TEST_SH.format(word=word),
        "solution/solve.sh": f"echo {word} > answer.txt\n",
    }
    for file, text in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    return place
