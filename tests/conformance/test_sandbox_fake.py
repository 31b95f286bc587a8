"""The part of the sandbox suite that needs no program inside, against the fake provider."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import Mount, SandboxSpec
from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench
from ramify.testing.fakes import FakeProvider

CHECKS = {check.name: check for check in SANDBOX_CHECKS}


@pytest.mark.parametrize(
    "name",
    [
        "exec.missing_program_is_127",
        "isolation.capabilities_agree",
        "life.probe_is_ok",
        "life.prepare_is_cached",
        "life.identity",
    ],
)
async def test_fake(name: str, tmp_path: Path) -> None:
    await CHECKS[name].run(SandboxBench(FakeProvider(), SandboxSpec(host_root=True), tmp_path))


async def test_a_fake_has_no_mounts(tmp_path: Path) -> None:
    for spec in (
        SandboxSpec(host_root=True, mounts=(Mount(str(tmp_path), "/x"),)),
        SandboxSpec(host_root=True, read_only=True),
    ):
        with pytest.raises(UnsupportedError, match="no such mounts"):
            await FakeProvider().create(spec)
