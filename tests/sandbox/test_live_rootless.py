"""Live checkpoints without root: all but a second checkpoint of a file that is being written to."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from ramify.contracts.config import ramify_home

pytestmark = pytest.mark.namespaces

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from live_parts import COUNTER, LIVE, ask, attached, captured, children, python
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import PtySize
from ramify.planes.sandbox.local import LocalProvider

async def main():
    provider = LocalProvider(Path(sys.argv[1]))
    print("mode", (await provider.probe()).mode)
    try:
        await provider.prepare(LIVE)
    except UnsupportedError as error:
        print("skip", error)
        await provider.aclose()
        return
    print("snapshot", provider.capabilities().snapshot)
    sandbox = await provider.create(LIVE)
    writer = await sandbox.spawn(python(COUNTER))
    shell = await sandbox.spawn(["/bin/sh"], env={"PS1": ""}, pty=PtySize())
    await shell.write(b"stty -echo; kept=mine; echo rea''dy\\n")
    seen = b""
    while b"ready" not in seen:
        seen += await shell.read()
    print("first", await ask(writer, "1"))
    image = await captured(sandbox)
    async with children(provider, image, 3) as copies:
        for number, copy in enumerate(copies):
            print("copy", await ask(attached(copy, writer), str(10 + number)))
            mine = attached(copy, shell)
            await mine.write(b"echo it:$kept:\\n")
            said = b""
            while b"it:" not in said or not said.endswith(b":\\r\\n"):
                said += await mine.read()
            print("shell", said.decode().split()[-1])
        try:
            await copies[0].checkpoint()
        except UnsupportedError as error:
            print("refused", "/var/tmp/live.db" in str(error))
        print("goes on", await ask(attached(copies[0], writer), "99"))
        await attached(copies[0], writer).aclose()
        second = await copies[0].checkpoint()
        async with children(provider, second, 2) as grandchildren:
            for one in grandchildren:
                mine = attached(one, shell)
                await mine.write(b"echo it:$kept:\\n")
                said = b""
                while b"it:" not in said or not said.endswith(b":\\r\\n"):
                    said += await mine.read()
                print("second", said.decode().split()[-1])
        await provider.discard(second)
    await provider.discard(image)
    await provider.aclose()
    print("left", sorted(os.listdir(Path(sys.argv[1]) / "run")))

asyncio.run(main())
"""

EXPECTED = [
    "mode rootless",
    "snapshot live",
    "first 1 1",
    *(row for number in range(3) for row in (f"copy 2 {10 + number}", "shell it:mine:")),
    "refused True",
    "goes on 3 99",
    *["second it:mine:"] * 2,
    "left []",
]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_live_checkpoints_without_root(tmp_path: Path) -> None:
    """In a mount namespace of its own, where that user can reach this interpreter."""
    source = Path(os.environ.get("RAMIFY_CRIU", str(ramify_home({}) / "criu")))
    if not (source / "criu").is_file():
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"no CRIU in {source}: run dev/criu")
        pytest.skip(f"no CRIU in {source}: run dev/criu")
    home = Path("/var/tmp") / f"ramify-live-{os.getpid()}"
    home.mkdir()
    criu = home / "criu"
    shutil.copytree(source, criu)
    os.chown(home, 65534, 65534)
    hidden = [p for p in (Path.home(), *Path.home().parents) if p.stat().st_mode & 0o005 != 0o005]
    steps = ["mount --make-rprivate /"]
    paths = [*sys.path, str(Path(__file__).parent)]
    needed = sorted({sys.base_prefix, sys.prefix, *filter(os.path.isdir, paths)})
    for number, place in enumerate(needed):
        if hidden and Path(place).is_relative_to(hidden[0]):
            stash = tmp_path / str(number)
            stash.mkdir()
            steps.insert(1, f"mount --bind {place} {stash}")
            steps.append(f"mkdir -p {place}; mount --bind {stash} {place}")
    if hidden:
        count = sum("--bind" in step and "mkdir" not in step for step in steps)
        steps.insert(1 + count, f"mount -t tmpfs -o mode=755 tmpfs {hidden[0]}")
    steps.append(
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME={home}"
        f" RAMIFY_CRIU={criu} RAMIFY_HOME={home}/ramify"
        f' PYTHONPATH={":".join(p for p in paths if p)} {sys.executable} -c "$CODE" {home}/local'
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", "\n".join(steps)),
        env={**os.environ, "CODE": PROGRAM},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    rows = out.decode().splitlines()
    shutil.rmtree(home)
    if len(rows) > 1 and rows[1].startswith("skip"):
        pytest.skip(rows[1])
    assert rows == EXPECTED, errors.decode()
