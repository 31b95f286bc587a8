"""`local` in a container: mounts below the system directories, and a home on an overlay."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from without_root import run_without_root

pytestmark = pytest.mark.namespaces

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.sandbox.local import LocalProvider

LOOKS = {
    "changes /etc": "echo x > /etc/ramify-new && cat /etc/ramify-new > /dev/null",
    "secrets": "cat /etc/profile.d/secret /usr/src/secret /usr/share/doc/* 2>/dev/null",
    "entries": "find /usr/share/doc /usr/src -mindepth 1; ls -A /etc | grep -xE 'shadow|fstab'",
    "damaged": "ls -lA /etc | grep '^[?c]'",
    "hosts": "cat /etc/hosts",
    "accounts": "getent passwd root",
    "runs": "env true && ls -d /usr/bin",
    "changes /usr": "touch /usr/new 2>&1",
}

async def main():
    os.chdir("/usr/share/doc")  # the engine's own directory is hidden
    provider = LocalProvider(Path(sys.argv[1]))
    print((await provider.probe()).mode, provider.capabilities().users)
    spec = SandboxSpec(host_root=True)
    for turn in range(2):  # the second one finds the base that the first one built
        sandbox = await provider.create(spec)
        for name, script in LOOKS.items():
            done = await sandbox.exec(script)
            print(name, done.exit_code, *done.stdout.decode().split())
        await sandbox.teardown()
    await provider.aclose()

asyncio.run(main())
"""


@as_root
async def test_what_is_mounted_below_system_directories_stays_outside(
    tmp_path: Path, reachable: Path
) -> None:
    mounts = [
        f"mount -t tmpfs tmpfs {place}; echo hidden > {place}/secret; chmod 644 {place}/secret"
        for place in ("/etc/profile.d", "/usr/src")
    ]
    mounts.append("mount --bind /etc/hostname /etc/hosts")
    rows, errors = await run_without_root(PROGRAM, reachable, tmp_path, mounts)
    if rows[:1] == ["none True"]:
        pytest.skip("namespaces are forbidden for other users here")
    assert rows[:1] == ["rootless False"], errors
    assert len(rows) == 17, errors
    assert rows[1:9] == rows[9:], "a base that is found again is the same"
    assert rows[1:9] == [
        "changes /etc 0",
        "secrets 1",
        "entries 1",
        "damaged 1",
        "hosts 0 127.0.0.1 localhost sandbox ::1 localhost",
        f"accounts 0 {account_of_root()}",
        "runs 0 /usr/bin",
        "changes /usr 1 touch: cannot touch '/usr/new': Read-only file system",
    ], errors


def account_of_root() -> str:
    """Its line in the host's own file."""
    lines = Path("/etc/passwd").read_text().splitlines()
    return next(line for line in lines if line.startswith("root:"))


@as_root
async def test_a_home_on_an_overlay_is_refused_with_the_remedy(tmp_path: Path) -> None:
    names = ("lower", "upper", "work", "merged")
    for name in names:
        (tmp_path / name).mkdir()
    options = ",".join(f"{name}dir={tmp_path / name}" for name in names[:3])
    home = tmp_path / "merged" / "not-there-yet"
    script = (
        f"mount -t overlay overlay -o {options} {tmp_path}/merged\n"
        f"RAMIFY_HOME={home} {Path(sys.executable).with_name('ramify')} doctor; exit 0"
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", script), stdout=asyncio.subprocess.PIPE
    )
    said = (await process.communicate())[0].decode()
    [row] = [line for line in said.splitlines() if line.startswith("local ") and " no " in line]
    assert "none" in row
    assert f"{home}/sandbox lies on an overlay file system" in said
    assert "set RAMIFY_HOME to a directory on a volume or a tmpfs" in said
    assert not home.exists()
