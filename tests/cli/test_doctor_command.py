"""`ramify doctor` says whether processes can be captured, and what to do if not."""

from __future__ import annotations

import json

import pytest
from command_line import CommandLine


@pytest.mark.namespaces
def test_why_live_checkpoints_do_not_work(
    ramify: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMIFY_CRIU", "/nonexistent")
    rows = json.loads(ramify("doctor", "--json").out)["sandboxes"]
    live = {row["name"]: row["live"] for row in rows}
    assert live["local"].startswith("no: ")
    assert "dev/criu" in live["local"]
    assert live["bare"].startswith("no: ")
