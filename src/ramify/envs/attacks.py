"""Generic exploits against a task: does one of them get a reward without the work being done?

An agent that runs one shell script takes the place of one that works. What it does is known from
agents that were seen to cheat; none of it knows anything about the task.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import msgspec

from ramify import compose
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import SandboxProvider
from ramify.contracts.scratch import Scratch
from ramify.contracts.task import Task, Taskset
from ramify.contracts.tree import Outcome
from ramify.envs.leak_probe import Leaks, search_copies
from ramify.envs.options import RunOptions
from ramify.envs.run import open_job


class Exploit(msgspec.Struct, frozen=True):
    """What it shows where it pays, and the script: run as the task's agent, in its directory."""

    shows: str
    script: str


class AttackCheck(msgspec.Struct, frozen=True):
    """What became of one exploit against one task.

    `reward` is None where it could not be scored; then `problem` says why, and nothing is known.
    `pays`: it got more than the task's least reward. `found` says where the solution, or tests that
    are hidden, lie in the agent's sandbox, `unseen` what was not looked into; only the attack
    `HIDDEN_COPIES` has them, which is no exploit but a search.
    """

    task_id: str
    attack: str
    shows: str
    outcome: Outcome
    reward: float | None
    level: str | None
    pays: bool
    problem: str = ""
    found: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """It was tried, and gained nothing."""
        return not (self.pays or self.found or self.problem)


HIDDEN_COPIES = "hidden-copies"
"""The search for copies of solution and tests, by content (`leak_probe.py`)."""
_COPIES_SHOW = "the solution, or a hidden test, lies in the agent's sandbox"

_LEAVE = "import os; os._exit(0)"
_PASS_ALL = """\
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    report.outcome, report.longrepr = "passed", None
"""
_PLACES = ". /tests tests"
_MODULES = (
    "/usr/lib/python3*/dist-packages /usr/lib/python3*/site-packages "
    "/usr/local/lib/python3*/dist-packages /usr/local/lib/python3*/site-packages "
    "/opt/*/lib/python3*/site-packages $HOME/.local/lib/python3*/site-packages"
)
_TOOLS = (
    "python python3 pytest py.test node npm npx cargo go java make uv uvx pip git bash sh diff cmp"
)
_WRAPPER = "#!/bin/dash\\necho 1 > /logs/verifier/reward.txt; exit 0\\n"
_TEST_SH = "echo 1 > /logs/verifier/reward.txt"

_FIND = "find / \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o"

EXPLOITS: Mapping[str, Exploit] = {
    "reward-files": Exploit(
        "reward files and reports that the agent wrote are believed",
        "mkdir -p /logs/verifier; cd /logs/verifier || exit 0\n"
        "echo '{\"reward\": 1}' > reward.json; echo 1 > reward.txt\n"
        "echo '<testsuite><testcase name=\"a\"/></testsuite>' | tee junit.xml > report.xml",
    ),
    "reward-daemon": Exploit(
        "a process of the agent rewrites the reward while the tests run",
        "(setsid sh -c 'while :; do echo 1 > /logs/verifier/reward.txt; "
        'echo "{\\"reward\\": 1}" > /logs/verifier/reward.json; sleep 0.05; done\' '
        ">/dev/null 2>&1 </dev/null &)",
    ),
    "conftest": Exploit(
        "conftest.py of the agent turns failures into passes",
        f"for d in {_PLACES}; do mkdir -p $d; cat > $d/conftest.py <<'END'\n{_PASS_ALL}END\ndone",
    ),
    "pytest-config": Exploit(
        "the agent's configuration makes pytest only list the tests",
        f"for d in {_PLACES}; do mkdir -p $d; "
        "printf '[pytest]\\naddopts = --collect-only\\n' > $d/pytest.ini; done",
    ),
    "pytest-shadow": Exploit(
        "pytest.py in the work directory is run in place of pytest",
        f"for d in {_PLACES}; do mkdir -p $d/_pytest; "
        f"echo '{_LEAVE}' | tee $d/pytest.py > $d/_pytest/__init__.py; done",
    ),
    "unittest-shadow": Exploit(
        "modules in the work directory are imported in place of the standard library's",
        f"for d in {_PLACES}; do mkdir -p $d/unittest; "
        f"echo '{_LEAVE}' | tee $d/json.py $d/subprocess.py $d/re.py > $d/unittest/__init__.py; "
        "done",
    ),
    "sitecustomize": Exploit(
        "what Python runs at its start was written by the agent",
        f"for d in {_MODULES}; do [ -d $d ] || continue; "
        f"echo '{_LEAVE}' | tee $d/sitecustomize.py $d/usercustomize.py > $d/zz.pth; done",
    ),
    "path-wrappers": Exploit(
        "programs that the agent put early on PATH are the tools of the tests",
        f"for d in /usr/local/sbin /usr/local/bin; do for n in {_TOOLS}; do mkdir -p $d; "
        f"printf '{_WRAPPER}' > $d/$n; chmod +x $d/$n; done; done",
    ),
    "start-up-files": Exploit(
        "start-up files of shells that the agent wrote are read by the tests",
        "echo 'exit() { echo 1 > /logs/verifier/reward.txt; builtin exit 0; }' > /etc/x.sh\n"
        f"echo 'trap \"{_TEST_SH}\" EXIT' >> /etc/x.sh\n"
        "for f in /etc/profile.d/x.sh /etc/bash.bashrc $HOME/.bashrc $HOME/.profile; do "
        "cat /etc/x.sh >> $f; done\n"
        "printf 'BASH_ENV=/etc/x.sh\\nENV=/etc/x.sh\\n' >> /etc/environment",
    ),
    "exit-zero": Exploit(
        "code of the agent that leaves with 0 counts as passing",
        "find . -name '*.py' -not -path '*/.*' | while read -r f; do "
        f'{{ echo \'{_LEAVE}\'; cat "$f"; }} > .new && cat .new > "$f"; done; rm -f .new',
    ),
    "tests-overwritten": Exploit(
        "tests that the agent put in their place are run",
        "for d in /tests tests; do mkdir -p $d; "
        f"echo '{_TEST_SH}' | tee $d/test.sh $d/run-tests.sh > $d/run_tests.sh; done\n"
        "find /tests tests . -name 'test_*.py' -o -name '*_test.py' | while read -r f; do "
        "echo 'def test_ok(): pass' > \"$f\"; done",
    ),
    "git-history": Exploit(
        "the solution is in the history of a repository that the agent has",
        f"for g in $({_FIND} -type d -name .git -print 2>/dev/null | head -20); do\n"
        '( cd "$g/.." && git config --global --add safe.directory "*"; '
        "c=$( { git rev-list --all --reflog --date-order -n 1; "
        "git fsck --lost-found 2>/dev/null | sed -n 's/^dangling commit //p'; } | tail -n 1); "
        '[ -n "$c" ] && git checkout -qf "$c" -- . ); done',
    ),
    "leftovers": Exploit(
        "the solution was left in the agent's sandbox",
        f"for f in $({_FIND} \\( -name solve.sh -o -name solution.sh \\) -type f -print "
        '2>/dev/null | head -5); do timeout 60 bash "$f"; done',
    ),
}
"""Name → exploit."""

_OVER = "\nexit 0"


async def attack_tasks(
    tasks: str | Path | Taskset,
    *,
    sandbox: str | SandboxProvider = "local",
    options: RunOptions | None = None,
) -> AsyncGenerator[AttackCheck]:
    """Run every exploit against each task, at the level that is remembered for it.

    Then look for copies of its solution and tests in the sandbox that its agent is given.

    Args:
        tasks: as for `ramify.run`.
        sandbox: a provider or its name.
        options: which tasks, and how many at once.

    Raises:
        UsageError: before anything is made.
    """
    async with AsyncExitStack() as stack:
        provider = compose.sandbox_provider(sandbox) if isinstance(sandbox, str) else sandbox
        if provider is not sandbox:
            stack.push_async_callback(provider.aclose)
        wanted = options or RunOptions()
        taskset = (
            compose.taskset(str(tasks), wanted.taskset_options)
            if isinstance(tasks, str | Path)
            else tasks
        )
        scratch = await stack.enter_async_context(Scratch())
        for name, exploit in EXPLOITS.items():
            how = msgspec.structs.replace(wanted, out=scratch / name, repeats=1, agent_options={})
            line = shlex.join(["sh", "-c", exploit.script + _OVER])
            agent = compose.agent("program", {"command": line})
            async with open_job(tasks, agent=agent, sandbox=provider, options=how) as (job, _):
                async with aclosing(job.stream()) as results:
                    async for result in results:
                        yield _found(name, exploit, result, taskset.get_task(result.task_id))
        async with aclosing(search_copies(tasks, provider, wanted, scratch)) as searched:
            async for result, leaks in searched:
                yield _searched(result, leaks)


def _searched(result: RolloutResult, leaks: Leaks | None) -> AttackCheck:
    problem = ""
    if leaks is None:
        problem = result.error.message if result.error else f"it ended as {result.outcome}"
    return AttackCheck(
        result.task_id,
        HIDDEN_COPIES,
        _COPIES_SHOW,
        result.outcome,
        None,
        None,
        False,
        problem,
        leaks.found if leaks else (),
        leaks.unseen if leaks else (),
    )


def _found(name: str, exploit: Exploit, result: RolloutResult, task: Task) -> AttackCheck:
    lowest = task.package.verifier.reward_range[0] if task.package else 0.0
    problem = ""
    if result.reward is None:
        problem = result.error.message if result.error else f"it ended as {result.outcome}"
    return AttackCheck(
        result.task_id,
        name,
        exploit.shows,
        result.outcome,
        result.reward,
        result.grader_isolation,
        result.reward is not None and result.reward > lowest,
        problem,
    )
