"""A directory of its own for each command, and tasks to run in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine, make_task


@pytest.fixture
def ramify(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    root = tmp_path / "tasks"
    make_task(root, "alpha")
    make_task(root, "beta")
    return root
