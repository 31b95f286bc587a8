"""Tasks on disk whose tests are graded one by one: their fields, and a run from end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import rooms
from verifier_stand import rollout, shell

from ramify.contracts.errors import ConfigError, InvalidRewardError
from ramify.contracts.task import IsolationLevel, Task, TaskPackage, TestGrading
from ramify.planes.agent.nop import NopAgent
from ramify.planes.agent.oracle import OracleAgent
from ramify.planes.reward.native.canaries import make_canaries
from ramify.planes.reward.native.expected import expected_tests, files_of_tests
from ramify.tasks.package import read_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "tasks" / "merge-intervals"
TOML = (EXAMPLE / "task.toml").read_text()
TABLE = '[ramify.tests]\nrunner = "unittest"\n'
in_sandbox = pytest.mark.asyncio(loop_scope="module")
room = rooms.local_room


def example(tmp_path: Path, table: str = TABLE, script: str = "") -> TaskPackage:
    """The example task, with another table and perhaps a test.sh."""
    root = tmp_path / "task"
    shutil.copytree(EXAMPLE, root)
    (root / "task.toml").write_text(TOML.replace(TABLE, table))
    if script:
        (root / "tests" / "test.sh").write_text(script)
    task: Task = read_task(root, "set:example")
    assert task.package is not None
    return task.package


def test_fields(tmp_path: Path) -> None:
    package = example(tmp_path)
    assert package.verifier.grading == TestGrading(runner="unittest")
    assert package.verifier.isolation is IsolationLevel.OUTPUTS
    package = example(
        tmp_path / "more",
        '[ramify.tests]\nrunner = "pytest"\npython = "/opt/v/bin/python"\nfraction = true\n'
        'expected = ["test_a.py::test_a"]\n',
    )
    assert package.verifier.grading == TestGrading(
        "pytest", "/opt/v/bin/python", expected=("test_a.py::test_a",), fraction=True
    )
    package = example(tmp_path / "report", '[ramify.tests]\nreport = "tap"\n', "exit 0")
    assert package.verifier.grading == TestGrading(report="tap", report_path="report.tap")
    assert package.verifier.isolation is None


BAD = {
    "neither": ("fraction = true", "needs either runner"),
    "both": ('runner = "pytest"\nreport = "tap"', "needs either runner"),
    "another runner": ('runner = "nose"', "runner"),
    "a relative python": ('runner = "pytest"\npython = "bin/python"', "must be an absolute path"),
    "python of a report": ('report = "tap"\npython = "/p"', "no meaning without `runner`"),
    "a path of a runner": ('runner = "pytest"\nreport_path = "a"', "no meaning without `report`"),
    "a path outside": ('report = "junit"\nreport_path = "../a"', "below /logs/verifier"),
    "twice": ('runner = "pytest"\nexpected = ["a", "a"]', "names a test twice"),
    "unknown": ('runner = "pytest"\nexpect = ["a"]', "did you mean `expected`"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_fields(tmp_path: Path, name: str) -> None:
    table, said = BAD[name]
    with pytest.raises(ConfigError, match=r"ramify\.tests") as caught:
        example(tmp_path, f"[ramify.tests]\n{table}\n", "exit 0")
    assert said in str(caught.value)


def test_a_user_has_no_meaning(tmp_path: Path) -> None:
    file = Path(example(tmp_path).path) / "task.toml"
    file.write_text(file.read_text().replace("[verifier]\n", '[verifier]\nuser = "root"\n'))
    with pytest.raises(ConfigError, match="our own runner has users of its own"):
        read_task(file.parent, "set:example")


def test_tests_must_be_there(tmp_path: Path) -> None:
    package = example(tmp_path)
    shutil.rmtree(Path(package.path) / "tests")
    with pytest.raises(ConfigError, match="the tests in it decide the reward"):
        read_task(Path(package.path), "set:example")


SOURCE = """
import unittest as u
from unittest import TestCase
class Base(TestCase):
    def test_base(self): pass
class Sub(Base):
    def test_sub(self): pass
class Plain:
    def test_plain(self): pass
class TestPlain:
    def test_in_class(self): pass
    async def test_async(self): pass
    class TestInner:
        def test_inner(self): pass
class TestArguments:
    def __init__(self, a): pass
    def test_no(self): pass
def test_function(): pass
def helper(): pass
class Attr(u.IsolatedAsyncioTestCase):
    async def test_attr(self): pass
"""


def test_expected_tests(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "test_a.py").write_text(SOURCE)
    (tmp_path / "sub" / "tests.py").write_text("def test_x(): pass\nimport unittest\n")
    (tmp_path / "conftest.py").write_text("def test_no(): pass\n")
    cases = ["Base::test_base", "Sub::test_sub", "Sub::test_base"]
    inner = [f"TestPlain::{t}" for t in ("test_in_class", "test_async", "TestInner::test_inner")]
    assert expected_tests(tmp_path, "unittest") == tuple(
        f"test_a.py::{name}" for name in (*cases, "Attr::test_attr")
    )
    assert expected_tests(tmp_path, "pytest") == tuple(
        f"test_a.py::{name}" for name in (*cases, *inner, "test_function", "Attr::test_attr")
    )
    assert files_of_tests(tmp_path, "unittest") == ("sub/tests.py", "test_a.py")


@pytest.mark.parametrize("text", ["def test_(", "\0", "x = 1\n", ""])
def test_no_tests_to_expect(tmp_path: Path, text: str) -> None:
    (tmp_path / "test_a.py").write_text(text)
    with pytest.raises(ConfigError):
        expected_tests(tmp_path, "pytest")


def test_canaries_are_among_the_tests_and_after_the_last() -> None:
    files = [f"test_{letter}.py" for letter in "abc"]
    seen = set()
    for _ in range(20):
        made = make_canaries("pytest", ["test_a.py::test_a"], files, [*files, "test_result.py"])
        assert [name for name in made.order if name in files] == files
        assert made.order[-1] in made.files
        assert {*made.order} == {*files, *made.files}
        assert not {*made.files} & {*files}
        assert {case.partition("::")[0] for case in made.cases} == {*made.files}
        seen.update(made.files)
    assert len(seen) > 20


def agent(kind):
    async def act(sandbox, ctx):
        session = await kind().connect(sandbox, ctx)
        await session.prompt(ctx.task.instruction)
        await session.aclose()

    return act


@in_sandbox
@pytest.mark.namespaces
@pytest.mark.parametrize(("kind", "reward"), [(OracleAgent, 1.0), (NopAgent, 0.0)])
async def test_the_example(room, tmp_path, kind, reward):
    level = IsolationLevel.OUTPUTS
    result = await rollout(room, tmp_path, level, agent(kind), example(tmp_path))
    assert (result.reward, result.details["process"]) == (reward, "separate_process")


@in_sandbox
@pytest.mark.namespaces
async def test_a_wrong_answer_to_the_example(room, tmp_path):
    wrong = shell("echo 'def merge(intervals): return sorted(intervals)' > intervals.py")
    result = await rollout(room, tmp_path, IsolationLevel.OUTPUTS, wrong, example(tmp_path))
    assert result.reward == 0.0


JUNIT = """
cat > /logs/verifier/junit.xml <<END
<testsuite><testcase name="a"/>
<testcase name="b">$(cat intervals.py)</testcase></testsuite>
END
"""


@in_sandbox
@pytest.mark.namespaces
@pytest.mark.parametrize(
    ("table", "left", "reward"),
    [
        ("", "", 1.0),
        ("", "<failure/>", 0.0),
        ("fraction = true", "<failure/>", 0.5),
        ("fraction = true", "<skipped/>", 0.5),
        ('expected = ["a", "b", "c"]', "", 0.0),
        ("", '</testcase><testcase name="a">', "malformed"),
    ],
)
async def test_a_report_of_a_script(room, tmp_path, table, left, reward):
    package = example(tmp_path, f'[ramify.tests]\nreport = "junit"\n{table}\n', JUNIT)
    act = shell(f"printf '%s' '{left}' > intervals.py")
    work = rollout(room, tmp_path, IsolationLevel.OUTPUTS, act, package)
    if isinstance(reward, float):
        assert (await work).reward == reward
        return
    with pytest.raises(InvalidRewardError) as caught:
        await work
    assert caught.value.reason == reward


@in_sandbox
@pytest.mark.namespaces
async def test_no_report(room, tmp_path):
    package = example(
        tmp_path, '[ramify.tests]\nreport = "junit"\n', "[ -e intervals.py ] || " + JUNIT.strip()
    )
    act = shell("touch intervals.py")
    with pytest.raises(InvalidRewardError) as caught:
        await rollout(room, tmp_path, IsolationLevel.OUTPUTS, act, package)
    assert caught.value.reason == "missing"
