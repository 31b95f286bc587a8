"""`bare` without root: one user, who takes root's place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from without_root import run_without_root

PROGRAM = """
import asyncio, sys
from pathlib import Path
from ramify.contracts.errors import SandboxError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import BareProvider

async def main():
    provider = BareProvider(Path(sys.argv[1]), allow_unenforced=True)
    await provider.probe()
    print(provider.capabilities().users)
    sandbox = await provider.create(SandboxSpec(host_root=True, workdir="/app"))
    given = Path(sys.argv[1], "given")
    given.write_text("x")
    for user in (None, "root", "0"):
        print((await sandbox.exec("id -u", user=user)).stdout.decode().strip())
        await sandbox.upload(given, f"/app/{user}", owner=user)
    print((await sandbox.exec("stat -c %u * | sort -u")).stdout.decode().strip())
    for attempt in (sandbox.exec("id", user="daemon"), sandbox.upload(given, "/app/d", owner="1")):
        try:
            print("became another", await attempt)
        except SandboxError as error:
            print("refused", error)
    await sandbox.teardown()
    await provider.aclose()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
async def test_root_is_the_one_user_and_there_is_no_other(reachable: Path, tmp_path: Path) -> None:
    rows, errors = await run_without_root(PROGRAM, reachable, tmp_path)
    assert rows[:5] == ["False", *["65534"] * 4], errors
    assert len(rows) == 7, errors
    assert all(
        row.startswith(("refused", "became another ExecResult(exit_code=126")) for row in rows[5:]
    )
