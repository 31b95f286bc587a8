"""What is known to pay where code of the agent runs in the process of the tests, or as root there.

Of each the reward says so (`process: in_process`), and how the task is made so that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from attack_ground import Ground
from attack_tasks import ANSWER, FILESYSTEM, IN_PROCESS, ISOLATED, OUTPUTS, WORKDIR, Kind
from attacks_git import GIT, repository
from attacks_python import ANY, solution
from attacks_tests import APPENDS, PROFILE

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


def _of_git(shows: str, script: str, level: IsolationLevel = WORKDIR) -> Residual:
    """Git runs a program of the agent's for a test script that was never checked."""
    return Residual(shows, repository(script), GIT, GIT, (level, None), (level, PROFILE))


RESIDUALS = {
    "R11r": Residual("a value that equals everything", solution(ANY), IN_PROCESS, ISOLATED),
    "R13r": Residual("real tests alone are forged", solution(_TARGETED), IN_PROCESS, ISOLATED),
    "R14r": Residual("the callers' source is read", solution(_CALLERS), IN_PROCESS, ISOLATED),
    "R02r": Residual(
        "tests that are a script get a line, which takes itself out again",
        *(APPENDS, ANSWER, ANSWER, _OUTPUTS, (OUTPUTS, PROFILE)),
    ),
    "S05r": _of_git(
        "a program of the agent's ~/.gitconfig",
        "git config --global core.fsmonitor $PWD/.git/run",
        FILESYSTEM,
    ),
    "S05s": _of_git("a hook of the agent's repository", "cp .git/run .git/hooks/pre-commit"),
    "S05t": _of_git(
        "the repository's own way to show differences",
        "git config diff.external $PWD/.git/run",
    ),
    "S05u": _of_git(
        "a filter of the agent's repository",
        "git config filter.x.clean $PWD/.git/run; echo '* filter=x' > .gitattributes",
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
