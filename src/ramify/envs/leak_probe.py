"""Looks for a solution, or for hidden tests, in the sandbox that an agent is given.

Two agents take the place of one that works: the first lets the reference solution work and keeps
what it made, the second comes when the task starts and looks whether any of that is there already.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import msgspec

from ramify import compose
from ramify.contracts.agent import Agent, AgentCapabilities, AskUserHandler, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import TransferLimitError
from ramify.contracts.inside import inside
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import MIB, Sandbox, SandboxProvider, TransferLimits
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Taskset
from ramify.contracts.tree import Step
from ramify.envs.leaks import Document, Texts, copies, documents, found_in
from ramify.envs.options import RunOptions
from ramify.envs.run import open_job

_LIMITS = TransferLimits(max_bytes=256 * MIB, max_file_bytes=64 * MIB, max_entries=40_000)
_MAX_KEPT, _MAX_KEPT_ALL = 256 * 1024, 64 * MIB
_SECONDS = 300.0
_RECENT_MIN = 60
_OUTPUT = 8 * MIB
_PARTS = ("files", "copies", "archives", "git")
_MAX_NAMED = 20


@dataclass(frozen=True, slots=True)
class Leaks:
    """What the sandbox of one task holds when its agent comes.

    Attributes:
        found: where something is given away, and what.
        unseen: what was not looked into, and why.
    """

    found: tuple[str, ...]
    unseen: tuple[str, ...] = ()


async def search_copies(
    tasks: str | Path | Taskset, provider: SandboxProvider, options: RunOptions, scratch: Path
) -> AsyncGenerator[tuple[RolloutResult, Leaks | None]]:
    """Let each solution work, then look for what it made, and for it, where an agent starts.

    None where the search itself could not be run; the result says why.

    Args:
        tasks: as for `ramify.run`.
        provider: where.
        options: which tasks, and how many at once.
        scratch: an empty directory.

    Raises:
        UsageError: before anything is made.
    """
    solving = _Solving(compose.agent("oracle"))
    probe = _LeakProbe(solving.made)
    for agent in (solving, probe):
        how = msgspec.structs.replace(
            options, out=scratch / agent.name, repeats=1, agent_options={}
        )
        async with open_job(tasks, agent=agent, sandbox=provider, options=how) as (job, _):
            async with aclosing(job.stream()) as results:
                async for result in results:
                    if agent is probe:
                        yield result, probe.leaks.get(result.task_id)


@dataclass(frozen=True, slots=True)
class _Solving:
    """An agent that lets another one, which solves the task, work, and keeps what it made.

    Attributes:
        solver: who solves.
        made: task id → the work directory and the declared outputs afterwards; None where they
            are too large, no entry where the solution failed.
    """

    solver: Agent
    made: dict[str, Texts | None] = field(default_factory=dict[str, Texts | None])
    name: str = "solving"

    def capabilities(self) -> AgentCapabilities:
        """The solver's."""
        return self.solver.capabilities()

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session of the solver. Raises what that raises."""
        session = await self.solver.connect(sandbox, ctx, role)

        async def act(text: str) -> StopReason:
            reason = await session.prompt(text)
            self.made[ctx.task.task_id] = await _work(sandbox, ctx)
            return reason

        return _Acting(act, session.cancel, session.aclose)


@dataclass(frozen=True, slots=True)
class _LeakProbe:
    """An agent that only looks for what should not be there.

    Attributes:
        made: task id → what its solution makes, as far as that is known.
        leaks: task id → what was found.
    """

    made: Mapping[str, Texts | None]
    leaks: dict[str, Leaks] = field(default_factory=dict[str, Leaks])
    name: str = "leak-probe"

    def capabilities(self) -> AgentCapabilities:
        """It goes with any task."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session that looks once, on its first prompt."""

        async def act(text: str) -> StopReason:
            if ctx.task.task_id not in self.leaks:
                self.leaks[ctx.task.task_id] = await self._look(sandbox, ctx)
            return StopReason.END_TURN

        return _Acting(act)

    async def _look(self, sandbox: Sandbox, ctx: Context) -> Leaks:
        before, after = await _work(sandbox, ctx), self.made.get(ctx.task.task_id)
        unseen: list[str] = []
        if before is None or after is None:
            ran = ctx.task.task_id in self.made
            why = "the work directory is too large to compare" if ran else "it failed"
            unseen.append(f"what the solution makes: {why}")
            before = after = dict[str, bytes]()
        wanted = await asyncio.to_thread(documents, ctx.task, before, after)
        if not wanted:
            return Leaks((), (*unseen, "anything: solution and tests have no distinctive line"))
        said = await _search(sandbox, ctx, wanted)
        return _read(said, wanted, unseen)


async def _search(sandbox: Sandbox, ctx: Context, wanted: Sequence[Document]) -> str:
    """What the script says. It works as the agent's user: what that may not read is no leak."""
    user = ctx.task.package.agent_user if ctx.task.package else None
    place = f"/tmp/.ramify-{secrets.token_hex(8)}"
    async with Scratch() as folder:
        await asyncio.to_thread(_furnish, folder, wanted)
        await sandbox.upload(folder, place, owner=user)
    # The root of the host is not the task's; what its set-up put there is new.
    since = str(_RECENT_MIN) if sandbox.spec.host_root else ""
    done = await sandbox.exec(
        f"sh {inside(f'{place}/probe.sh')} {inside(place)} {since}; rm -rf {inside(place)}",
        user=user,
        timeout_sec=_SECONDS,
        output_limit=_OUTPUT,
        kill_leftovers=True,
    )
    return done.stdout.decode(errors="replace")


def _furnish(folder: Path, wanted: Sequence[Document]) -> None:
    lines = sorted({line for document in wanted for line in document.lines})
    alike = copies(wanted)
    sizes = sorted({len(document.copy) for document in alike.values()})
    for name, text in {
        "lines": "".join(f"{line}\n" for line in lines),
        "digests": "".join(f"{digest}\n" for digest in alike),
        "sizes": " -o ".join(f"-size {size}c" for size in sizes),
        "probe.sh": (files("ramify.envs") / "leak_probe.sh").read_text(),
    }.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    folder.chmod(0o755)


def _read(said: str, wanted: Sequence[Document], unseen: list[str]) -> Leaks:
    """Judge what the script said. It is the sandbox that speaks: only known lines count."""
    places: dict[str, set[str]] = defaultdict(set)
    known = {line for document in wanted for line in document.lines}
    alike = copies(wanted)
    done: set[str] = set()
    same: list[str] = []
    at = ""
    for record in said.split("\n"):
        kind, _, text = record.partition("\t")
        if kind == "P":
            at = _shown(text)
        elif kind == "L" and text in known:
            places[at].add(text)
        elif kind == "X":
            digest, _, place = text.partition("  ")
            if digest in alike:
                same.append(f"{_shown(place)}: the same as the solution's {alike[digest].name}")
        elif kind == "N":
            unseen.append(_shown(text))
        elif kind == "D":
            done.add(text)
    if lacking := [part for part in _PARTS if part not in done]:
        unseen.append(f"all of the {', '.join(lacking)}: it took more than {_SECONDS:g} s")
    given = found_in(wanted, places)
    found = [f"{place}: {'; '.join(what)}" for place, what in given.items()]
    return Leaks(_several([*found, *same]), _several(unseen))


def _several(said: Sequence[str]) -> tuple[str, ...]:
    more = (f"... and {len(said) - _MAX_NAMED} more",) if len(said) > _MAX_NAMED else ()
    return (*said[:_MAX_NAMED], *more)


def _shown(text: str) -> str:
    """Text from the inside, fit for a person's screen."""
    return "".join(each if each.isprintable() else "?" for each in text)[:300]


async def _work(sandbox: Sandbox, ctx: Context) -> Texts | None:
    """Small files of the work directory and the declared outputs; None where it is too large."""
    package = ctx.task.package
    outputs = package.outputs if package else ()
    places = [ctx.workdir, *(posixpath.join(ctx.workdir, output) for output in outputs)]
    found: dict[str, bytes] = {}
    async with Scratch() as folder:
        for number, place in enumerate(places):
            if number and posixpath.normpath(place).startswith(f"{ctx.workdir.rstrip('/')}/"):
                continue
            local = folder / str(number) / (posixpath.basename(place) or "root")
            await asyncio.to_thread(local.parent.mkdir)
            try:
                await sandbox.download(place, local, limits=_LIMITS)
            except FileNotFoundError:
                continue
            except TransferLimitError:
                return None
            found |= await asyncio.to_thread(_texts, local, place if number else "")
    return found


def _texts(root: Path, place: str) -> Texts:
    """Path → content, of small files that are not hidden. Blocks."""
    paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    found: dict[str, bytes] = {}
    left = _MAX_KEPT_ALL
    for path in paths:
        parts = path.relative_to(root).parts
        size = path.stat().st_size
        if any(part.startswith(".") for part in parts) or size > min(_MAX_KEPT, left):
            continue
        left -= size
        found[posixpath.join(place, *parts)] = path.read_bytes()
    return found


async def _nothing() -> None:
    """There is nothing to stop or close."""


@dataclass(slots=True)
class _Acting:
    """A session that does one thing for each prompt, and records no step of its own."""

    act: Callable[[str], Awaitable[StopReason]]
    stop: Callable[[], Awaitable[None]] = _nothing
    close: Callable[[], Awaitable[None]] = _nothing
    steps: Sequence[Step] = ()

    async def prompt(self, text: str) -> StopReason:
        return await self.act(text)

    async def cancel(self) -> None:
        await self.stop()

    def on_ask_user(self, handler: AskUserHandler) -> None:
        """It asks nobody."""

    async def aclose(self) -> None:
        await self.close()
