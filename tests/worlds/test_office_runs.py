"""The office as jobs run it: unchanged on local and docker, hidden files, what persists."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from checker import State, differences
from office_branch import Life, Stand, close_all, mutate, seen
from office_stand import OFFICE

import ramify
from ramify.contracts.frozen import Snapshottable
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.docker import DockerProvider
from ramify.planes.sandbox.local import LocalProvider

MANIFEST = OFFICE / "manifest.toml"
HOOKS = OFFICE / "manifest-hook.toml"
TASKS = OFFICE / "tasks"
NAMES = sorted(path.name for path in TASKS.iterdir())


@pytest_asyncio.fixture
async def local(namespaces_available: None, tmp_path: Path) -> AsyncGenerator[Stand]:
    provider = LocalProvider()
    await provider.probe()
    try:
        yield Stand(provider, tmp_path)
    finally:
        await provider.aclose()


@pytest_asyncio.fixture
async def docker(docker_available: None, tmp_path: Path) -> AsyncGenerator[Stand]:
    provider = DockerProvider()
    await provider.probe()
    try:
        yield Stand(provider, tmp_path, host_root=False)
    finally:
        await provider.aclose()


async def rewards(agent: str, sandbox: str, out: Path) -> dict[str, float | None]:
    options = ramify.RunOptions(out=out)
    report = await ramify.run(TASKS, agent=agent, sandbox=sandbox, options=options)
    return {result.task_id.rpartition(":")[2]: result.reward for result in report.results}


@pytest.mark.docker
@pytest.mark.namespaces
@pytest.mark.parametrize("sandbox", ["local", "docker"])
async def test_the_same_tasks_on_local_and_docker(sandbox: str, tmp_path: Path) -> None:
    """The image is the manifest's own; on local it comes from the Docker engine, once."""
    assert await rewards("oracle", sandbox, tmp_path / "oracle") == dict.fromkeys(NAMES, 1.0)
    assert await rewards("nop", sandbox, tmp_path / "nop") == dict.fromkeys(NAMES, 0.0)


def as_ever(state: State) -> State:
    """Without what Docker lays over one file of every container made from a frozen image."""
    state["mounts"].pop("/etc/ld.so.preload", None)
    return state


async def hooks_on(stand: Stand) -> None:
    life = await stand.open(HOOKS, live=False)
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        await life.call("chat", "PATCH", "/channels/1", {"topic": "before"})
        before = await life.look()
        image, _ = await stand.cut(life, live=False)
        images.append(image)
        copies += await stand.children(life, image, 2)
        for copy in copies:
            assert differences(before, as_ever(await copy.look()), but=("processes",)) == []
        for number, copy in enumerate(copies):
            await mutate(copy, f"child{number}")
        for number, copy in enumerate(copies):
            assert await seen(copy) == [f"of child{number}"] * 6
        copies.append(await stand.child(life, image))
        again = as_ever(await copies[-1].look())
        assert differences(before, again, but=("processes",)) == []
    finally:
        await close_all([life, *copies])
        for image in images:
            await stand.provider.discard(image)


async def test_files_and_hooks_on_docker(docker: Stand) -> None:
    await hooks_on(docker)


_SEARCH = r"""
import os, sys
needles = sys.stdin.buffer.read().split(b"\0")
seen = []


def look(path):
    try:
        with open(path, "rb") as file:
            data = file.read(64 << 20)
    except OSError:
        return
    seen.extend(path for word in needles if word in data)


for folder, folders, names in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in ("proc", "sys")]
    seen.extend(os.path.join(folder, n) for n in names + folders if n == "office_grader")
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not os.path.islink(path):
            look(path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid():
        continue
    for part in ("cmdline", "environ", "maps", "mountinfo"):
        look(f"/proc/{pid}/{part}")
    try:
        seen.extend(n for n in os.listdir(f"/proc/{pid}/root/srv/office") if n == "office_grader")
        opened = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        continue  # not even root inside may look there
    seen.extend(target for target in opened if "office_grader" in target)
print(*seen, sep="\n")
"""
_SECRETS = (b"_COMPLAINTS = ", b"def close_falcon", b"Changes are taken as they are accounted")


async def found(life: Life) -> list[str]:
    """Where root inside comes upon a file that the manifest hides, or a byte string of one."""
    line = ["python3", "-I", "-B", "-c", _SEARCH]
    done = await life.sandbox.exec(line, user="root", cwd="/", stdin=b"\0".join(_SECRETS))
    assert done.ok, done.stderr.decode()
    return done.stdout.decode().split()


async def nothing_hidden(stand: Stand, *, live: bool) -> None:
    """In an image: the host's own root may hold a clone of this repository."""
    stand.host_root = False
    text = b"".join(path.read_bytes() for path in (OFFICE / "world" / "office_grader").glob("*.py"))
    assert all(secret in text for secret in _SECRETS)
    manifest = MANIFEST if live else HOOKS
    life = await stand.open(manifest, live=live)
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        assert await found(life) == []
        await life.run(["sh", "-c", "echo 'def close_falcon' > /srv/office/planted"])
        assert await found(life) == ["/srv/office/planted"]
        await life.run(["rm", "/srv/office/planted"])
        image, _ = await stand.cut(life, live=live)
        images.append(image)
        copies += await stand.children(life, image, 2)
        for copy in copies:
            assert await found(copy) == []
            if isinstance(stand.provider, LocalProvider):
                assert isinstance(copy.sandbox, Snapshottable) is live
    finally:
        await close_all([life, *copies])
        for image in images:
            await stand.provider.discard(image)


@pytest.mark.docker
@pytest.mark.parametrize("live", [False, True])
async def test_hidden_files_are_nowhere_on_local(local: Stand, live: bool) -> None:
    if live:
        await local.provider.probe()
        if local.provider.capabilities().snapshot != "live":
            if os.environ.get("CI", "").lower() in ("1", "true"):
                pytest.fail("live checkpoints must work on CI")
            pytest.skip("no live checkpoints here")
    await nothing_hidden(local, live=live)


async def test_hidden_files_are_nowhere_on_docker(docker: Stand) -> None:
    await nothing_hidden(docker, live=False)


@pytest.mark.parametrize(("isolation", "kept"), [("persistent", True), ("per_task", False)])
async def test_what_the_next_episode_finds(
    local: Stand, tmp_path: Path, isolation: str, kept: bool
) -> None:
    place = tmp_path / "office"
    place.mkdir()
    (place / "world").symlink_to(OFFICE / "world")
    text = HOOKS.read_text().replace('name = "office"', f'name = "o"\nisolation = "{isolation}"')
    (place / "manifest.toml").write_text(text)
    first = await local.open(place / "manifest.toml", live=False)
    try:
        await first.call("mail", "POST", "/labels", {"name": "from-before"})
        node = (await first.call("files", "GET", "/resolve?path=/Dana/notes.md"))["id"]
        line = ["python3", "-B", "/srv/office/client.py", "files", "PUT", f"/files/{node}/content"]
        await first.run(["sh", "-c", "echo from before > /tmp/note"])
        await first.run([*line, "@/tmp/note"])
        before = await first.look()
    finally:
        await first.close()
    second = await local.open(place / "manifest.toml", live=False)
    try:
        after = await second.look()
        labels = json.dumps(await second.call("mail", "GET", "/labels"))
        assert ("from-before" in labels) is kept
        same = differences(before, after, but=("processes", "files"))
        assert (same == []) is kept
        blobs = {path: f for path, f in after["files"].items() if "/data/blobs/" in path}
        assert ({p: f for p, f in before["files"].items() if "/data/blobs/" in p} == blobs) is kept
    finally:
        await second.close()


def test_a_copy_of_the_office_is_a_world_of_its_own(tmp_path: Path) -> None:
    """Nothing in the world's files points out of its directory."""
    shutil.copytree(OFFICE, tmp_path / "elsewhere", symlinks=True)
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_symlink()]
    assert len(MANIFEST.read_text().splitlines()) <= 40
