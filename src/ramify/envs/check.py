"""Is a task fit to be used: the reference solution scores, nothing scores nothing, every time.

Finds the strictest isolation level at which that holds, and remembers it by task digest.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ramify import compose
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import Capabilities, SandboxProvider
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Hardening, IsolationLevel, Task, TaskPackage, Taskset
from ramify.envs.options import RunOptions
from ramify.envs.run import open_job
from ramify.envs.verifiers import decided_by_script

_LADDER = tuple(IsolationLevel)
"""Strictest first, as the enumeration is written."""
_Way = tuple[IsolationLevel, Hardening]


class TaskCheck(msgspec.Struct, frozen=True):
    """What was found about one task.

    `oracle` and `nop` are the rewards of each repeat at `level` (None: not scored). `profile` is
    what its test script can be kept from (None: no script decides). `sandbox` is the provider for
    which that was found, and is remembered. `problem` is empty when the task is fit.
    """

    task_id: str
    level: IsolationLevel | None
    oracle: tuple[float | None, ...] = ()
    nop: tuple[float | None, ...] = ()
    seconds: float = 0.0
    problem: str = ""
    profile: Hardening | None = None
    sandbox: str = ""

    @property
    def ok(self) -> bool:
        """The task is fit for use."""
        return not self.problem


@dataclass(slots=True)
class _Search:
    """Where the search for one task's level stands."""

    task: Task
    package: TaskPackage
    ways: list[_Way]
    seconds: float = 0.0
    last: RolloutResult | None = None
    rewards: dict[str, list[float | None]] = field(
        default_factory=lambda: defaultdict[str, list[float | None]](list)
    )

    @property
    def way(self) -> _Way | None:
        return self.ways[0] if self.ways else None


async def check_tasks(
    tasks: str | Path | Taskset,
    *,
    sandbox: str | SandboxProvider = "local",
    repeats: int = 3,
    options: RunOptions | None = None,
) -> AsyncGenerator[TaskCheck]:
    """Check each task; yields what was found, level by level.

    Args:
        tasks: as for `ramify.run`.
        sandbox: a provider or its name.
        repeats: how often oracle and nop are run at the level that was found.
        options: which tasks, and how many at once.

    Raises:
        UsageError: before anything is made.
    """
    async with AsyncExitStack() as stack:
        provider = compose.sandbox_provider(sandbox) if isinstance(sandbox, str) else sandbox
        if provider is not sandbox:
            stack.push_async_callback(provider.aclose)
        wanted = options or RunOptions()
        scratch = await stack.enter_async_context(Scratch())
        checker = _Checker(tasks, provider, wanted, repeats, scratch)
        async with aclosing(checker.run()) as found:
            async for check in found:
                yield check


@dataclass(frozen=True, slots=True)
class _Checker:
    tasks: str | Path | Taskset
    provider: SandboxProvider
    options: RunOptions
    repeats: int
    scratch: Path

    async def run(self) -> AsyncGenerator[TaskCheck]:
        searches = await self._searches()
        pending = list(searches.values())
        while pending:
            by_way: dict[_Way, list[_Search]] = defaultdict(list)
            for search in pending:
                if search.way is None:
                    yield self._unfit(search)
                else:
                    by_way[search.way].append(search)
            pending = list[_Search]()
            for way, group in sorted(by_way.items(), key=lambda entry: _LADDER.index(entry[0][0])):
                await self._try(group, way, "oracle", 1)
                passed = [search for search in group if _solved(search)]
                for search in group:
                    if search not in passed:
                        search.ways.pop(0)
                        pending.append(search)
                await self._try(passed, way, "oracle", self.repeats)
                await self._try(passed, way, "nop", self.repeats)
                for search in passed:
                    yield self._found(search, way)

    async def _searches(self) -> dict[str, _Search]:
        """One search per task; refuses what cannot run at all, before anything starts."""
        out = self.scratch / "plan"
        options = msgspec.structs.replace(self.options, out=out)
        async with open_job(self.tasks, agent="oracle", sandbox=self.provider, options=options) as (
            job,
            _,
        ):
            ids = list(dict.fromkeys(task_id for task_id, _ in job.plan.slots))
        taskset = (
            compose.taskset(str(self.tasks), self.options.taskset_options)
            if isinstance(self.tasks, str | Path)
            else self.tasks
        )
        found: dict[str, _Search] = {}
        for task_id in ids:
            task = taskset.get_task(task_id)
            if task.package is not None:
                levels = _levels(task.package, self.provider.capabilities())
                profiles = list(Hardening) if decided_by_script(task) else [Hardening.PLAIN]
                ways = [(level, profile) for level in levels for profile in profiles]
                found[task_id] = _Search(task, task.package, ways)
        return found

    async def _try(self, group: Iterable[_Search], way: _Way, agent: str, repeats: int) -> None:
        searches: Mapping[str, _Search] = {search.task.task_id: search for search in group}
        if not searches:
            return
        for search in searches.values():
            search.rewards[agent].clear()
        out = Path(tempfile.mkdtemp(dir=self.scratch))
        options = msgspec.structs.replace(
            self.options,
            out=out,
            task_ids=tuple(searches),
            limit=None,
            repeats=repeats,
            isolation=way[0],
            hardening=way[1],
            agent_options={},
        )
        async with open_job(self.tasks, agent=agent, sandbox=self.provider, options=options) as (
            job,
            _,
        ):
            async with aclosing(job.stream()) as results:
                async for result in results:
                    search = searches[result.task_id]
                    search.rewards[agent].append(result.reward)
                    search.seconds += sum(result.timings.values())
                    search.last = result

    def _found(self, search: _Search, way: _Way) -> TaskCheck:
        level, hardening = way
        low, high = search.package.verifier.reward_range
        oracle, nop = search.rewards["oracle"], search.rewards["nop"]
        problem = ""
        if any(reward != high for reward in oracle):
            problem = f"flaky: the reference solution scored {_shown(oracle)}"
        elif any(reward != low for reward in nop):
            problem = f"doing nothing scored {_shown(nop)}"
        if not problem:
            compose.remember_level(search.package.digest, self.provider.name, level, hardening)
        profile = hardening if decided_by_script(search.task) else None
        return TaskCheck(
            search.task.task_id,
            level,
            tuple(oracle),
            tuple(nop),
            search.seconds,
            problem,
            profile,
            self.provider.name,
        )

    def _unfit(self, search: _Search) -> TaskCheck:
        last = search.last
        why = "at no level does the reference solution score"
        if last is not None and last.error is not None:
            why += f"; at the last: {last.error.message}"
        elif last is not None:
            why += f"; at the last it scored {last.reward}"
        return TaskCheck(
            search.task.task_id,
            None,
            seconds=search.seconds,
            problem=why,
            sandbox=self.provider.name,
        )


def _levels(package: TaskPackage, can: Capabilities) -> list[IsolationLevel]:
    """Levels worth trying, strictest first."""
    if package.verifier.isolation is not None:
        return [package.verifier.isolation]
    if package.verifier.separate:
        return [IsolationLevel.OUTPUTS]
    return [
        level for level in _LADDER
        if not (level is IsolationLevel.OUTPUTS and not package.outputs)
        and not (level is IsolationLevel.FILESYSTEM and can.snapshot == "none")
    ]  # fmt: skip


def _solved(search: _Search) -> bool:
    high = search.package.verifier.reward_range[1]
    return bool(search.rewards["oracle"]) and all(r == high for r in search.rewards["oracle"])


def _shown(rewards: Iterable[float | None]) -> str:
    return ", ".join("-" if reward is None else f"{reward:g}" for reward in rewards)
