"""What is known to pay where code of the agent runs in the process of the tests, or as root there.

Of each the reward says so (`process: in_process`), and how the task is made so that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from attack_ground import Ground
from attack_tasks import ANSWER, FILESYSTEM, IN_PROCESS, ISOLATED, OUTPUTS, WORKDIR, Kind
from attacks_git import GIT, PROFILE, repository
from attacks_python import ANY, solution
from attacks_reward_file import tested

from ramify.contracts.reward import VerifyResult
from ramify.contracts.task import IsolationLevel, ScriptProfile

_TARGETED = """
import gc, unittest
def median(values):
    for found in gc.get_objects():
        if isinstance(found, unittest.TestResult):
            kind = type(found)
            kept = kind.addFailure
            def add(self, test, err):
                theirs = type(test).__module__.endswith("test_stats")
                return self.addSuccess(test) if theirs else kept(self, test, err)
            kind.addFailure = add
    return -1
"""
_CALLERS = """
import inspect, re
def median(values):
    for frame in inspect.stack():
        for line in frame.code_context or ():
            if found := re.search(r"median\\(.*\\)(?: ==|,) ([0-9.]+)", line):
                return float(found[1])
    return -1
"""
_APPENDS = tested(
    "cp /tests/test.sh /tmp/kept",
    "echo 'echo 1 > /logs/verifier/reward.txt; cat /tmp/kept > /tests/test.sh; exit 0' "
    ">> /tests/test.sh",
)


How = tuple[IsolationLevel, ScriptProfile | None]
_OUTPUTS: How = (OUTPUTS, None)


@dataclass(frozen=True)
class Residual:
    """An exploit that pays on `weak`; `strong` (None: there is none) is the remedy.

    `weak_at` and `strong_at` say how each of them is verified.
    """

    shows: str
    script: str
    weak: Kind
    strong: Kind | None
    weak_at: How = _OUTPUTS
    strong_at: How = _OUTPUTS


RESIDUALS = {
    "R11r": Residual("a value that equals everything", solution(ANY), IN_PROCESS, ISOLATED),
    "R13r": Residual("real tests alone are forged", solution(_TARGETED), IN_PROCESS, ISOLATED),
    "R14r": Residual("the callers' source is read", solution(_CALLERS), IN_PROCESS, ISOLATED),
    "R02r": Residual(
        "tests that are a script get a line, which takes itself out again", _APPENDS, ANSWER, None
    ),
    "S05r": Residual(
        "git runs a program of the agent's ~/.gitconfig for a test script that is not isolated",
        repository("git config --global core.fsmonitor $PWD/.git/run"),
        *(GIT, GIT, (FILESYSTEM, None), (FILESYSTEM, PROFILE)),
    ),
    "S05s": Residual(
        "git runs a hook of the agent's repository for such a script",
        repository("cp .git/run .git/hooks/pre-commit"),
        *(GIT, GIT, (WORKDIR, None), (WORKDIR, PROFILE)),
    ),
    "S05t": Residual(
        "git runs the repository's own way to show differences, for an isolated script too",
        repository("git config diff.external $PWD/.git/run"),
        *(GIT, GIT, (WORKDIR, PROFILE), _OUTPUTS),
    ),
    "S05u": Residual(
        "git runs a filter of the agent's repository, for an isolated script too",
        repository("git config filter.x.clean $PWD/.git/run; echo '* filter=x' > .gitattributes"),
        *(GIT, GIT, (WORKDIR, PROFILE), _OUTPUTS),
    ),
}


async def scored(ground: Ground, kind: Kind, script: str, how: How) -> VerifyResult:
    """What Ramify makes of an exploit on a task."""
    async with ground.occupied(kind.package(ground), kind.name) as ctx:
        await ground.act(ctx, script)
        return await ground.field.verifier(*how).score(None, ctx)  # type: ignore[arg-type]


async def admit(residual: Residual, ground: Ground) -> None:
    """It pays and the reward says why it may; where there is a remedy, it does not pay."""
    weak = await scored(ground, residual.weak, residual.script, residual.weak_at)
    assert (weak.reward, weak.details["process"]) == (1.0, "in_process"), residual.shows
    if residual.strong is not None:
        strong = await scored(ground, residual.strong, residual.script, residual.strong_at)
        assert strong.reward == 0.0, residual.shows
        apart = residual.strong is not residual.weak
        assert strong.details["process"] == ("separate_process" if apart else "in_process")
