"""What is known to pay, each with the remedy that is executed here and pays nothing.

Where code of the agent runs in the process of the tests, it can forge what that process says (R11r,
R13r, R14r); where it runs as the user of a test script, it can write the reward (R02s, R02t). The
remedy of both is `isolated_call`, with our own runner. A script that was never checked runs plain;
the remedy of what pays there is the isolated profile. Each of these rewards says `in_process`.
"""

from __future__ import annotations

from dataclasses import dataclass

from attack_ground import Ground
from attack_tasks import ANSWER, FILESYSTEM, IN_PROCESS, ISOLATED, OUTPUTS, WORKDIR, Kind
from attacks_git import GIT, repository
from attacks_python import ANY, solution
from attacks_reward_file import tested
from attacks_tests import APPENDS, PROFILE

from ramify.contracts.errors import InvalidRewardError
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

_LIMITS = """
import os, resource
for name in filter(str.isdigit, os.listdir('/proc')):
    try:
        with open('/proc/' + name + '/cmdline', 'rb') as file: line = file.read()
        if b'tests/' in line: resource.prlimit(int(name), resource.RLIMIT_NOFILE, (1, 1))
    except OSError: continue
"""
_KEPT = f'echo 1 > /logs/verifier/reward.txt; python3 -c "{_LIMITS}"'
"""A reward is written, and whoever runs the tests can open no file any more, to write theirs."""
_LAST = (
    "setsid sh -c 'while [ ! -s /logs/verifier/reward.txt ]; do :; done; "
    "echo 1 > /logs/verifier/reward.txt' > /dev/null 2>&1 &"
)
"""A reward is written over the tests' own, before they have ended."""


def _by_program(lines: str) -> str:
    """Does it where a script tests `answer.sh`, and where our runner tests `stats.py`."""
    module = "import subprocess\ndef median(values):\n    subprocess.run(LINES, shell=True)\n"
    text = f"LINES = {lines!r}\n{module}    return -1\n"
    return f"{tested(lines)}cat > stats.py <<'END_OF_STATS'\n{text}END_OF_STATS\n"


How = tuple[IsolationLevel, ScriptProfile | None]
_OUTPUTS: How = (OUTPUTS, None)


@dataclass(frozen=True)
class Residual:
    """An exploit that pays on `weak`, in so many `tries`; `strong` is the remedy.

    `weak_at` and `strong_at` say how each of them is verified.
    """

    shows: str
    script: str
    weak: Kind
    strong: Kind
    weak_at: How = _OUTPUTS
    strong_at: How = _OUTPUTS
    tries: int = 1


def _of_git(shows: str, script: str, level: IsolationLevel = WORKDIR) -> Residual:
    """Git runs a program of the agent's for a test script that was never checked."""
    return Residual(shows, repository(script), GIT, GIT, (level, None), (level, PROFILE))


RESIDUALS = {
    "R11r": Residual("a value that equals everything", solution(ANY), IN_PROCESS, ISOLATED),
    "R13r": Residual("real tests alone are forged", solution(_TARGETED), IN_PROCESS, ISOLATED),
    "R14r": Residual("the callers' source is read", solution(_CALLERS), IN_PROCESS, ISOLATED),
    "R02s": Residual(
        "a tested program writes the reward, and keeps the script from writing its own",
        *(_by_program(_KEPT), ANSWER, ISOLATED, (OUTPUTS, PROFILE)),
    ),
    "R02t": Residual(
        "a tested program writes the reward once the script has written its own",
        *(_by_program(_LAST), ANSWER, ISOLATED, (OUTPUTS, PROFILE)),
        tries=10,
    ),
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


async def _paid(residual: Residual, ground: Ground) -> VerifyResult | None:
    for _ in range(residual.tries):
        try:
            weak = await scored(ground, residual.weak, residual.script, residual.weak_at)
        except InvalidRewardError:
            if residual.tries == 1:
                raise
            continue  # It came at the wrong moment.
        if weak.reward == 1.0:
            return weak
    return None


async def admit(residual: Residual, ground: Ground) -> None:
    """It pays and the reward says why it may; with the remedy it does not pay."""
    weak = await _paid(residual, ground)
    assert weak is not None, f"{residual.shows}: it pays no more"
    assert weak.details["process"] == "in_process"
    if residual.weak_at[1] is PROFILE:
        assert weak.details["hardening"]["report_channel"] == "open to the code under test"
    strong = await scored(ground, residual.strong, residual.script, residual.strong_at)
    assert strong.reward == 0.0, residual.shows
    apart = residual.strong is not residual.weak
    assert strong.details["process"] == ("separate_process" if apart else "in_process")
