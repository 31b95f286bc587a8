"""Branching through the `local` provider, in each of its modes: deep chains, unchanged states."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from ramify.contracts.errors import SandboxError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import Sandbox, SandboxImage, SandboxSpec
from ramify.planes.sandbox import layer_freeze
from ramify.planes.sandbox.local import LocalProvider

pytestmark = pytest.mark.namespaces

HOST = SandboxSpec(host_root=True)
STEP = (
    "cd /srv && mkdir -p keep && rm -f f{last} && echo {now} > f{now} && ln f{now} hard{now}"
    " && rm -rf dir && mkdir dir && echo {now} > dir/only{now} && echo {now} >> keep/log"
)


async def freeze(sandbox: Sandbox) -> SandboxImage:
    assert isinstance(sandbox, Freezable)
    return await sandbox.freeze()


async def chain(provider: LocalProvider, home: Path, length: int) -> None:
    """Freeze again and again, past where layers are merged; then look, and freeze unchanged."""
    image: SandboxImage | None = None
    for number in range(length):
        sandbox = await provider.create(HOST, image)
        done = await sandbox.exec(STEP.format(last=number - 1, now=number))
        assert done.ok, done
        parent, image = image, await freeze(sandbox)
        if parent is not None:
            await provider.discard(parent)
    assert image is not None
    assert len(os.listdir(home / "store" / "layers")) == length - 64  # merged once, at 64
    sandbox = await provider.create(HOST, image)
    seen = await sandbox.exec("cd /srv && ls | grep -c hard && echo f* dir/* && wc -l < keep/log")
    last = length - 1
    assert seen.stdout.decode().split() == [
        str(length), f"f{last}", f"dir/only{last}", str(length)
    ]  # fmt: skip
    same = await freeze(sandbox)
    assert same.digest == image.digest
    await provider.discard(image)
    child = await provider.create(HOST, same)
    assert (await child.exec(f"cat /srv/f{last}")).stdout.decode().strip() == str(last)
    await child.teardown()
    await provider.discard(same)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("mode", ["userns", "plain"])
async def test_a_deep_chain(mode: str, tmp_path: Path, namespaces_available: None) -> None:
    provider = LocalProvider(tmp_path / "home", mode=mode)  # type: ignore[arg-type]
    await chain(provider, tmp_path / "home", 70)
    await provider.aclose()
    assert os.listdir(tmp_path / "home" / "store" / "layers") == []


async def test_a_freeze_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespaces_available: None
) -> None:
    def full(*_: object, sync: bool) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    provider = LocalProvider(tmp_path / "home")
    try:
        sandbox = await provider.create(HOST)
        assert (await sandbox.exec("echo x > /srv/x")).ok
        monkeypatch.setattr(layer_freeze, "write_json", full)
        with pytest.raises(SandboxError, match="no space left"):
            await freeze(sandbox)
        await sandbox.teardown()
        store = tmp_path / "home" / "store"
        assert [list((store / name).iterdir()) for name in ("layers", "images")] == [[], []]
        (engine,) = (store / "engines").iterdir()
        async with asyncio.timeout(20):  # files go in the background
            while [path for path in engine.iterdir() if path.is_dir()]:  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.02)
            (run,) = (tmp_path / "home" / "run").iterdir()
            while list(run.glob(f"{sandbox.id}*")):  # noqa: ASYNC110 (no event)
                await asyncio.sleep(0.02)
    finally:
        await provider.aclose()


async def main(home: str) -> None:
    provider = LocalProvider(Path(home))
    print((await provider.probe()).mode)
    await chain(provider, Path(home), 70)
    await provider.aclose()
    print(os.listdir(Path(home) / "store" / "layers"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_a_deep_chain_of_an_unprivileged_user(
    tmp_path: Path, namespaces_available: None
) -> None:
    """In a mount namespace of its own, where that user can reach this interpreter."""
    home = Path("/var/tmp") / f"ramify-chain-{os.getpid()}"
    home.mkdir()
    os.chown(home, 65534, 65534)
    places = {sys.base_prefix, sys.prefix, str(Path(__file__).parent)}
    needed = sorted(places | set(filter(os.path.isdir, sys.path)))
    hidden = [p for p in (Path.home(), *Path.home().parents) if p.stat().st_mode & 0o005 != 0o005]
    steps = ["mount --make-rprivate /"]
    later: list[str] = []
    for number, place in enumerate(needed):
        if hidden and Path(place).is_relative_to(hidden[0]):
            stash = tmp_path / str(number)
            stash.mkdir()
            steps.append(f"mount --bind {place} {stash}")
            later.append(f"mkdir -p {place}; mount --bind {stash} {place}")
    if hidden:
        steps.append(f"mount -t tmpfs -o mode=755 tmpfs {hidden[0]}")
    path = ":".join([*filter(None, sys.path), str(Path(__file__).parent)])
    code = f"import asyncio, test_layers_provider as t; asyncio.run(t.main({str(home)!r}))"
    run = (
        f"exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME={home}"
        f' PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} {sys.executable} -c "$CODE"'
    )
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "sh", "-ec", "\n".join([*steps, *later, run])),
        env={**os.environ, "CODE": code},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    for item in sorted(home.rglob("*"), reverse=True):
        item.rmdir() if item.is_dir() and not item.is_symlink() else item.unlink()
    home.rmdir()
    assert output.decode().split() == ["rootless", "[]"], errors.decode()
