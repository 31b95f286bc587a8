"""The conformance suite of the Sandbox contract, for every provider: ours and yours.

    import pytest
    from ramify.testing.conformance_sandbox import SANDBOX_CHECKS, SandboxBench

    @pytest.mark.parametrize("check", SANDBOX_CHECKS, ids=lambda check: check.name)
    async def test_my_provider(check, tmp_path):
        await check.run(SandboxBench(MyProvider(), SandboxSpec(image="debian"), tmp_path))

A check raises ConformanceError where the contract is broken, and CheckSkipped (a SkipTest) where
the provider's capabilities, or the programs found inside, leave it without a subject. Each needs
about a second at most, and none depends on another. A provider that serves many checks has to
live in one event loop: give it and the tests the same loop scope.
"""

from __future__ import annotations

from ramify.testing.check import Check
from ramify.testing.conformance_sandbox_download import DOWNLOAD_CHECKS
from ramify.testing.conformance_sandbox_exec import EXEC_CHECKS
from ramify.testing.conformance_sandbox_isolation import ISOLATION_CHECKS
from ramify.testing.conformance_sandbox_kill import KILL_CHECKS
from ramify.testing.conformance_sandbox_life import LIFE_CHECKS
from ramify.testing.conformance_sandbox_mounts import MOUNT_CHECKS
from ramify.testing.conformance_sandbox_network import NETWORK_CHECKS
from ramify.testing.conformance_sandbox_reconnect import RECONNECT_CHECKS
from ramify.testing.conformance_sandbox_spawn import SPAWN_CHECKS
from ramify.testing.conformance_sandbox_upload import UPLOAD_CHECKS
from ramify.testing.sandbox_bench import SandboxBench

_PARTS = {
    "exec": EXEC_CHECKS,
    "kill": KILL_CHECKS,
    "spawn": SPAWN_CHECKS,
    "upload": UPLOAD_CHECKS,
    "download": DOWNLOAD_CHECKS,
    "network": NETWORK_CHECKS,
    "reconnect": RECONNECT_CHECKS,
    "mounts": MOUNT_CHECKS,
    "isolation": ISOLATION_CHECKS,
    "life": LIFE_CHECKS,
}

SandboxCheck = Check[SandboxBench]

SANDBOX_CHECKS: tuple[SandboxCheck, ...] = tuple(
    check.renamed(f"{part}.{check.name}") for part, checks in _PARTS.items() for check in checks
)
"""Every check of the contracts Sandbox, Process, Freezable, Reconnects and SandboxProvider."""

__all__ = ["SANDBOX_CHECKS", "SandboxBench", "SandboxCheck"]
