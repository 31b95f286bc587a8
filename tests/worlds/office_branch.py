"""An office in a sandbox with programs at work in it, and copies: parts of the branch tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from checker import State, look
from office_stand import OFFICE

from ramify import compose
from ramify.contracts.config import ramify_home
from ramify.contracts.context import Context
from ramify.contracts.frozen import Freezable, Snapshottable
from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Limits,
    Sandbox,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
)
from ramify.contracts.task import Task, TaskPackage
from ramify.planes.environment.manifest import load_manifest
from ramify.planes.environment.state.make import make_driver
from ramify.planes.environment.world import ManifestEnvironment, WorldOptions
from ramify.testing.context import make_context

LIMITS = Limits(memory_mb=700, pids=300)
DEADLINE_SEC = 100.0
TARGETS = (("198.51.100.7", 80), ("127.0.0.1", 9))
"""Nobody is there: an address of the outside, and a closed port of the inside."""


class Lines:
    """The lines that a process prints; what was read but is no line yet is kept."""

    def __init__(self, process: Process, begun: bytes = b"") -> None:
        self.process = process
        self.begun = begun

    async def next(self) -> str:
        """The next line."""
        async with asyncio.timeout(DEADLINE_SEC):
            while b"\n" not in self.begun:
                more = await self.process.read()
                if not more:
                    said = await self.process.read_err()
                    raise AssertionError(f"it ended: {said.decode(errors='replace')[-2000:]}")
                self.begun += more
        line, _, self.begun = self.begun.partition(b"\n")
        return line.decode()

    async def wish(self, text: str) -> str:
        """Write a line and return the answer."""
        await self.process.write(f"{text}\n".encode())
        return await self.next()


@dataclass
class Life:
    """One sandbox with a world, the two programs in it, and the numbers acknowledged so far."""

    sandbox: Sandbox
    world: ManifestEnvironment
    ctx: Context
    hammer: Lines | None = None
    holder: Lines | None = None
    acked: list[int] = field(default_factory=list[int])

    async def run(self, argv: Sequence[str]) -> bytes:
        """A command inside, as root; what it printed."""
        done = await self.sandbox.exec(argv, user="root", cwd="/", timeout_sec=DEADLINE_SEC)
        assert done.ok, done.stderr.decode(errors="replace")[-3000:]
        return done.stdout

    async def call(self, service: str, method: str, path: str, body: Any = None) -> Any:
        """Ask a service as Dana, by a process inside."""
        given = [] if body is None else [json.dumps(body)]
        line = ["python3", "-B", "/srv/office/client.py", service, method, path, *given]
        out = await self.run(line)
        return json.loads(out) if out else None

    async def start_programs(self) -> None:
        """Begin to hammer (without a leave to write yet) and to hold."""
        await self.sandbox.upload(Path(__file__).with_name("hammer.py"), "/opt/hammer.py")
        line = ("python3", "-B", "/opt/hammer.py")
        self.hammer = Lines(await self.sandbox.spawn([*line, "write"], cwd="/"))
        self.holder = Lines(await self.sandbox.spawn([*line, "hold"], cwd="/"))
        assert await self.holder.next() == "holding"

    async def allow(self, count: int) -> None:
        """Let the hammer write that many more."""
        assert self.hammer is not None
        await self.hammer.process.write(b"." * count)

    async def acknowledged(self, number: int) -> None:
        """Wait until the hammer has acknowledged that number; none is missing or comes twice."""
        assert self.hammer is not None
        while not self.acked or self.acked[-1] < number:
            told = int(await self.hammer.next())
            assert told == (self.acked[-1] if self.acked else 0) + 1
            self.acked.append(told)

    async def look(self) -> State:
        """What the checker sees."""
        return await look(self.run, TARGETS, "north-7c1e")

    async def close(self) -> None:
        """End the world and its sandbox."""
        await self.world.teardown()
        await self.sandbox.teardown()


@dataclass
class Stand:
    """Where offices are opened, checkpointed and copied."""

    provider: SandboxProvider
    place: Path
    host_root: bool = True
    image: str | None = None

    def task(self, manifest: Path, item: str) -> Task:
        """A task of the office that has nothing but its world."""
        spec = SandboxSpec(host_root=True)
        package = TaskPackage(str(OFFICE), "", spec, world=str(manifest), host_root_ok=True)
        return compose.in_world(Task(f"office:{item}", package=package), None)

    def spec(self, task: Task, *, live: bool) -> SandboxSpec:
        """What sandboxes of a task are made from here."""
        assert task.package is not None
        spec = task.package.sandbox
        if self.host_root:
            spec = msgspec.structs.replace(spec, host_root=True, image=None, build=None)
        can = self.provider.capabilities().limits
        kept = {
            name: value for name, value in msgspec.structs.asdict(LIMITS).items() if name in can
        }
        return msgspec.structs.replace(spec, live=live, limits=Limits(**kept))

    def world(self, manifest: Path) -> ManifestEnvironment:
        """A world that is not provisioned."""
        options = WorldOptions(make_driver, ramify_home(), self.place / "keep")
        return ManifestEnvironment(load_manifest(manifest), options)

    async def open(self, manifest: Path, item: str = "close-falcon", *, live: bool) -> Life:
        """A healthy office."""
        task = self.task(manifest, item)
        spec = self.spec(task, live=live)
        image = await self.provider.prepare(spec)
        sandbox = await self.provider.create(spec, image)
        ctx = self.context(task, sandbox, image)
        life = Life(sandbox, self.world(manifest), ctx)
        try:
            await life.world.provision(sandbox, ctx)
            await healthy(life)
        except BaseException:
            await life.close()
            raise
        return life

    def context(self, task: Task, sandbox: Sandbox, image: SandboxImage) -> Context:
        """A context with artifacts of its own."""
        artifacts = self.place / f"artifacts-{sandbox.id}"
        artifacts.mkdir(parents=True)
        return make_context(task, sandbox, artifacts=artifacts, provider=self.provider, image=image)

    async def cut(self, life: Life, *, live: bool) -> tuple[SandboxImage, Mapping[str, str]]:
        """Quiesce and capture; the sandbox is spent."""
        ways = await life.world.quiesce(live)
        if live:
            assert isinstance(life.sandbox, Snapshottable)
            return await life.sandbox.checkpoint(), ways
        assert isinstance(life.sandbox, Freezable)
        return await life.sandbox.freeze(), ways

    async def child(self, parent: Life, image: SandboxImage) -> Life:
        """A copy of a life that was cut, with its programs where they came along."""
        sandbox = await self.provider.create(parent.sandbox.spec, image)
        ctx = self.context(parent.ctx.task, sandbox, image)
        try:
            life = Life(sandbox, await parent.world.fork(sandbox, ctx), ctx)
        except BaseException:
            await sandbox.teardown()
            raise
        if image.live:
            assert isinstance(sandbox, Snapshottable)
            life.acked = list(parent.acked)
            for name in ("hammer", "holder"):
                old: Lines | None = getattr(parent, name)
                if old is not None:
                    again = sandbox.attach(old.process.pid)
                    setattr(life, name, Lines(again, old.begun))
        try:
            await healthy(life)
        except BaseException:
            await life.close()
            raise
        return life

    async def children(self, parent: Life, image: SandboxImage, count: int) -> list[Life]:
        """Copies that are made at the same time."""
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(self.child(parent, image)) for _ in range(count)]
        return [task.result() for task in made]

    @asynccontextmanager
    async def opened(self, manifest: Path, *, live: bool) -> AsyncGenerator[Life]:
        """A healthy office, closed at the end."""
        life = await self.open(manifest, live=live)
        try:
            yield life
        finally:
            await life.close()


async def healthy(life: Life) -> None:
    """Wait until a world is healthy."""
    async with asyncio.timeout(DEADLINE_SEC):
        while not (probe := await life.world.readiness()).healthy:
            await life.ctx.clock.sleep(probe.retry_in_sec)


async def close_all(lives: Sequence[Life]) -> None:
    """Close several at once."""
    async with asyncio.TaskGroup() as group:
        for life in lives:
            group.create_task(life.close())


_MEETING = {"start": "2026-05-04T10:00:00Z", "end": "2026-05-04T11:00:00Z"}


async def mutate(life: Life, who: str) -> None:
    """Change everything: the same rows and the same files as others do, each in its own way."""
    [message] = (await life.call("mail", "GET", "/messages?folder=inbox&limit=1"))["items"]
    path = f"/messages/{message['id']}"
    await life.call("mail", "PATCH", path, {"add_labels": [f"of-{who}"], "unread": True})
    await life.call("calendar", "POST", "/events", {"title": f"of {who}", **_MEETING})
    await life.call("chat", "PATCH", "/channels/1", {"topic": f"of {who}"})
    write = f"echo of {who} > /srv/office/same.txt; cp /srv/office/same.txt /data/same.txt"
    await life.run(["sh", "-c", write])
    node = (await life.call("files", "GET", "/resolve?path=/Dana/notes.md"))["id"]
    line = ["python3", "-B", "/srv/office/client.py", "files", "PUT", f"/files/{node}/content"]
    await life.run([*line, "@/srv/office/same.txt"])


async def seen(life: Life) -> list[str]:
    """What `mutate` wrote, as each part has it now."""
    [message] = (await life.call("mail", "GET", "/messages?folder=inbox&limit=1"))["items"]
    events = (await life.call("calendar", "GET", "/events?start=2026-05-01T00:00:00Z"))["items"]
    channel = await life.call("chat", "GET", "/channels/1")
    node = (await life.call("files", "GET", "/resolve?path=/Dana/notes.md"))["id"]
    line = ["python3", "-B", "/srv/office/client.py", "files", "GET", f"/files/{node}/content"]
    texts = [
        await life.run(["cat", "/srv/office/same.txt", "/data/same.txt"]),
        await life.run(line),
    ]
    labels = [label.replace("-", " ") for label in message["labels"]]
    told = [*labels, *(event["title"] for event in events), channel["topic"]]
    return told + [line for text in texts for line in text.decode().splitlines()]
