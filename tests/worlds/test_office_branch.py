"""Branches of a live office: equal worlds from one checkpoint, and siblings that never meet.

The checker (checker.py) stands outside Ramify; a hammering writer, a background process and open
connections (hammer.py) are inside.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from checker import State, differences
from hammer import SAID
from office_branch import LIMITS, Life, Stand, close_all, mutate, seen
from office_stand import OFFICE

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import MIB, SandboxImage
from ramify.planes.sandbox.local import LocalProvider

MANIFEST = OFFICE / "manifest.toml"
HOOKS = OFFICE / "manifest-hook.toml"
SAMPLE, PROOF = 3, 100
HAMMERED = 40
"""Numbers that the writer may write in each round."""
ROOT = os.geteuid() == 0
DEEPEST = 4 if ROOT else 1
"""Checkpoints of checkpoints before a new office is opened: without root, open files have one."""
CHILDREN = 4

pytestmark = pytest.mark.namespaces


@pytest_asyncio.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    """Offices on the host's root, in namespaces."""
    provider = LocalProvider()
    report = await provider.probe()
    assert report.ok, report
    try:
        yield Stand(provider, tmp_path)
    finally:
        await provider.aclose()


@pytest_asyncio.fixture
async def live(stand: Stand) -> Stand:
    """Where processes can be captured."""
    try:
        spec = stand.spec(stand.task(MANIFEST, "close-falcon"), live=True)
        await stand.provider.prepare(spec)
    except UnsupportedError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(f"no live checkpoints here: {error}")
    return stand


def numbers_kept(state: State) -> dict[str, list[int]]:
    """Every number of the writer, as each place has it."""
    said = [e["body"] for e in state["logs"]["chat"] if e["body"].startswith('{"text": "number')]
    sent = [e["body"] for e in state["logs"]["mail"] if '"subject": "number' in e["body"]]
    rows = [row for row in state["rows"]["mail.db"] if "'dana@north.example','sent'" in row]
    return {
        "chat log": [int(json.loads(text)["text"].split()[1]) for text in said],
        "mail log": [int(json.loads(text)["subject"].split()[1]) for text in sent],
        "mail rows": [int(r.split("'number ")[1].split("'")[0]) for r in rows if "'number " in r],
        "chat rows": [
            int(row.split('"number ')[1].split('"')[0])
            for row in state["rows"]["chat.db"]
            if '"number ' in row
        ],
    }


async def settled(life: Life, total: int) -> State:
    """The state once the writer has used up its leave, with every acknowledged number in it."""
    await life.acknowledged(total)
    state = await life.look()
    wanted = [*range(1, total + 1)]
    assert numbers_kept(state) == dict.fromkeys(numbers_kept(state), wanted)
    lines = await life.run(["cat", "/srv/office/hammered.txt"])
    assert [int(line) for line in lines.split()] == wanted
    return state


async def uninterrupted(stand: Stand, total: int) -> State:
    """The same office and the same work without any checkpoint."""
    async with stand.opened(MANIFEST, live=True) as life:
        await life.start_programs()
        await life.allow(total)
        return await settled(life, total)


async def go_apart(lives: list[Life]) -> None:
    """Every child changes everything and finds its own changes; and its own half-read answer."""
    names = [f"child{number}" for number in range(len(lives))]
    async with asyncio.TaskGroup() as group:
        for life, name in zip(lives, names, strict=True):
            group.create_task(mutate(life, name))
    for life, name in zip(lives, names, strict=True):
        assert await seen(life) == [f"of {name}"] * 6
    nonces: set[str] = set()
    ports: set[str] = set()
    for life in lives:
        assert life.holder is not None
        nonces.add(await life.holder.wish("nonce"))
        ports.add(await life.holder.wish("ask"))
        assert json.loads(await life.holder.wish("finish")) == [*SAID]
    assert len(nonces) == len(ports) == 1


class Rounds:
    """Checkpoint, four children, a restore; each round goes on where the last one was restored."""

    def __init__(self, stand: Stand, seed: int) -> None:
        self.stand = stand
        self.random = random.Random(seed)
        self.life: Life | None = None
        self.depth = self.total = 0
        self.images: list[SandboxImage] = []

    async def begin(self) -> Life:
        """The office that is cut next."""
        if self.life is None or self.depth == DEEPEST:
            await self.end()
            self.life = await self.stand.open(MANIFEST, live=True)
            self.depth = self.total = 0
            await self.life.start_programs()
        return self.life

    async def once(self) -> State:
        """One round; returns the state that all copies had."""
        life = await self.begin()
        before = self.total
        self.total += HAMMERED
        await life.allow(HAMMERED)
        await life.acknowledged(before + self.random.randrange(1, HAMMERED // 2))
        image, ways = await self.stand.cut(life, live=True)
        self.images.append(image)
        assert image.live
        assert set(ways.values()) == {"live"}
        children = await self.stand.children(life, image, CHILDREN)
        try:
            async with asyncio.TaskGroup() as group:
                looking = [group.create_task(settled(c, self.total)) for c in children]
            first, *others = [task.result() for task in looking]
            for other in others:
                assert differences(first, other) == []
            assert not ROOT or str((LIMITS.memory_mb or 0) * MIB) in first["limits"].values()
            await go_apart(children)
            for child in children:
                assert differences(first, await child.look(), but=("processes",))
            again = await self.stand.child(life, image)
        finally:
            await close_all(children)
            await life.close()
        self.life, self.depth = again, self.depth + 1
        assert differences(first, await settled(again, self.total)) == []
        return first

    async def end(self) -> None:
        """Close what is open, and free the images."""
        life, self.life = self.life, None
        if life is not None:
            await life.close()
        while self.images:
            await self.stand.provider.discard(self.images.pop())


async def test_copies_are_equal_and_never_meet(live: Stand) -> None:
    rounds = Rounds(live, seed=1)
    try:
        state = await rounds.once()
        plain = await uninterrupted(live, HAMMERED)
        but = ("processes", "network", "limits")
        assert differences(plain, state, but=but) == []
        argv = [[each[0] for each in s["processes"].values()] for s in (plain, state)]
        assert sorted(argv[0]) == sorted(argv[1])
        assert plain["limits"] == state["limits"]
        assert plain["network"]["reached"] == state["network"]["reached"]
        for _ in range(SAMPLE - 1):
            await rounds.once()
    finally:
        await rounds.end()


@pytest.mark.skipif(ROOT, reason="root keeps inode numbers through any number of checkpoints")
async def test_without_root_a_second_checkpoint_names_the_open_file(live: Stand) -> None:
    """Never a silent downgrade: the office goes on, and its databases are writable."""
    rounds = Rounds(live, seed=3)
    try:
        await rounds.once()
        assert rounds.life is not None
        with pytest.raises(UnsupportedError, match=r"/data/\w+\.db"):
            await live.cut(rounds.life, live=True)
        await rounds.life.world.resume()
        await mutate(rounds.life, "parent")
        assert await seen(rounds.life) == ["of parent"] * 6
    finally:
        await rounds.end()


@pytest.mark.proof
@pytest.mark.timeout(3600)
async def test_a_hundred_of_a_hundred(live: Stand) -> None:
    rounds = Rounds(live, seed=2)
    try:
        for number in range(PROOF):
            await rounds.once()
            print(f"round {number + 1} of {PROOF}: equal, depth {rounds.depth}", flush=True)
    finally:
        await rounds.end()


async def test_one_service_that_is_left_out_is_found(live: Stand, tmp_path: Path) -> None:
    """The check can fail: mail starts anew in the copies, and nobody gives it its memory back."""
    manifest = broken(tmp_path / "office", '{ name = "mail"', "live", "restart")
    life = await live.open(manifest, live=True)
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        await life.call("mail", "POST", "/labels", {"name": "kept-in-memory"})
        before = await life.look()
        image, ways = await live.cut(life, live=True)
        images.append(image)
        assert {name for name, way in ways.items() if way == "restart"} == {"mail"}
        copies.append(await live.child(life, image))
        found = differences(before, await copies[0].look(), but=("processes",))
        assert found
        assert all(line.startswith("/logs/mail") for line in found)
    finally:
        await close_all([life, *copies])
        for image in images:
            await live.provider.discard(image)


def broken(place: Path, line: str, old: str, new: str) -> Path:
    """The office's manifest with another `on_branch` for one service."""
    place.mkdir(parents=True)
    (place / "world").symlink_to(OFFICE / "world")
    lines = MANIFEST.read_text().splitlines()
    [number] = [n for n, text in enumerate(lines) if text.strip().startswith(line)]
    changed = lines[number].replace(f'"{old}"', f'"{new}"')
    assert changed != lines[number]
    lines[number] = changed
    (place / "manifest.toml").write_text("\n".join(lines) + "\n")
    return place / "manifest.toml"


async def test_files_alone_do_not_hold_what_is_in_memory(stand: Stand) -> None:
    async with stand.opened(MANIFEST, live=False) as life:
        before = await life.look()
        with pytest.raises(UnsupportedError, match="mail, calendar, files, chat"):
            await stand.cut(life, live=False)
        assert differences(before, await life.look()) == []


async def with_hooks(stand: Stand) -> None:
    """A checkpoint of files, services that write down their memory and get it back."""
    life = await stand.open(HOOKS, live=False)
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        await mutate(life, "parent")
        before = await life.look()
        image, ways = await stand.cut(life, live=False)
        images.append(image)
        assert set(ways.values()) == {"hook"}
        copies += await stand.children(life, image, CHILDREN)
        but = ("processes",)
        for copy in copies:
            state = await copy.look()
            assert differences(before, state, but=but) == []
            assert sorted(each[0] for each in state["processes"].values()) == sorted(
                each[0] for each in before["processes"].values()
            )
        for number, copy in enumerate(copies):
            await copy.run(["rm", "/srv/office/same.txt"])
            await copy.call("chat", "PATCH", "/channels/1", {"topic": f"of {number}"})
        topics = [(await c.call("chat", "GET", "/channels/1"))["topic"] for c in copies]
        assert topics == [f"of {number}" for number in range(CHILDREN)]
        copies.append(await stand.child(life, image))
        assert differences(before, await copies[-1].look(), but=but) == []
    finally:
        await close_all([life, *copies])
        for image in images:
            await stand.provider.discard(image)


async def test_hooks_on_local(stand: Stand) -> None:
    await with_hooks(stand)


async def test_hooks_under_a_hammering_writer(stand: Stand) -> None:
    """What was acknowledged is in rows and logs, though the writer itself ends with the files."""
    life = await stand.open(HOOKS, live=False)
    images: list[SandboxImage] = []
    copies: list[Life] = []
    try:
        await life.start_programs()
        await life.allow(60_000)
        await life.acknowledged(20)
        image, _ = await stand.cut(life, live=False)
        images.append(image)
        copies += await stand.children(life, image, 2)
        states = [await copy.look() for copy in copies]
        assert differences(*states, but=("processes",)) == []
        kept: dict[str, list[int]] = numbers_kept(states[0])
        lengths = {name: len(numbers) for name, numbers in kept.items()}
        assert lengths["mail log"] == lengths["mail rows"]
        assert lengths["chat log"] == lengths["chat rows"]
        assert all(numbers[:20] == [*range(1, 21)] for numbers in kept.values())
        lines = (await copies[0].run(["cat", "/srv/office/hammered.txt"])).split()
        acknowledged = len(lines)
        assert all(len(numbers) >= acknowledged - 1 for numbers in kept.values())
        tampered: dict[str, Any] = json.loads(json.dumps(states[0]))
        tampered["logs"]["mail"].pop()
        assert differences(states[0], tampered)
    finally:
        await close_all([life, *copies])
        for image in images:
            await stand.provider.discard(image)


async def test_without_criu_live_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMIFY_CRIU", str(tmp_path / "none"))
    provider = LocalProvider()
    await provider.probe()
    stand = Stand(provider, tmp_path)
    try:
        assert provider.capabilities().snapshot == "freeze"
        with pytest.raises(UnsupportedError, match="CRIU"):
            await stand.open(MANIFEST, live=True)
        await with_hooks(stand)
    finally:
        await provider.aclose()
