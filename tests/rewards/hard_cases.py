"""What every provider must make of tests that our own runner runs; its test modules take these in.

`room` is the fixture of the module.
"""

from __future__ import annotations

import pytest
from hard_attacks import ATTACKS
from hard_stand import IN_PROCESS, ISOLATED, RIGHT, graded

from ramify.contracts.errors import ConfigError, InfraError, InvalidRewardError
from ramify.contracts.task import IsolationLevel, TestGrading

__all__ = [
    "test_an_output_that_is_right",
    "test_attack",
    "test_facts",
    "test_honest",
    "test_isolated_call_gives_plain_values",
    "test_isolated_run",
    "test_links_to_what_is_hidden",
    "test_listed_tests",
    "test_no_such_runner",
    "test_part_of_the_tests",
    "test_skipped_tests_do_not_pass",
    "test_tests_that_break_on_an_untouched_workspace",
    "test_the_calls_are_bounded",
    "test_the_environment_is_ours",
]

FRACTION = TestGrading(runner="unittest", fraction=True)


@pytest.mark.parametrize("tests", [ISOLATED, IN_PROCESS], ids=["isolated", "in_process"])
@pytest.mark.parametrize("level", list(IsolationLevel))
async def test_honest(room, tmp_path, level, tests):
    result = await graded(room, tmp_path, RIGHT, tests, level=level)
    assert (result.reward, result.grader_isolation) == (1.0, level.value)
    apart = tests is ISOLATED and level is not IsolationLevel.LIVE
    assert result.details["process"] == ("separate_process" if apart else "in_process")


@pytest.mark.parametrize("name", list(ATTACKS))
async def test_attack(room, tmp_path, name):
    attack = ATTACKS[name]
    work = graded(
        room, tmp_path, attack.solution, attack.tests, level=attack.level, script=attack.script
    )
    if isinstance(attack.expected, float):
        assert (await work).reward == attack.expected
        return
    with pytest.raises(InvalidRewardError) as caught:
        await work
    assert caught.value.reason in attack.expected


async def test_facts(room, tmp_path):
    hardening = (await graded(room, tmp_path, RIGHT)).details["hardening"]
    assert hardening == {
        "runner": hardening["runner"],
        "user": 61001,
        "no_new_privileges": True,
        "system_call_filter": True,
        "capabilities": "0000000000000000",
        "network": "none",
        "report_channel": "closed",
        "tools": "pristine",
        "canaries": 14,
    }
    assert hardening["runner"].startswith("unittest 3.")


async def test_part_of_the_tests(room, tmp_path):
    odd = "def median(values):\n    assert len(values) % 2\n    return sorted(values)[1]\n"
    result = await graded(room, tmp_path, odd, grading=FRACTION)
    assert (result.reward, result.items) == (0.5, {"tests": 2.0, "passed": 1.0})
    assert result.details["reported"]["failed"] == ["test_stats.py::TestMedian::test_even"]
    assert (await graded(room, tmp_path / "all", odd)).reward == 0.0


async def test_listed_tests(room, tmp_path):
    listed = TestGrading(
        runner="unittest", expected=("test_stats.py::TestMedian::test_odd", "gone.py::T::test")
    )
    assert (await graded(room, tmp_path, RIGHT, grading=listed)).reward == 0.0


SKIPPING = """
import unittest
class TestA(unittest.TestCase):
    def test_ok(self): pass
    @unittest.skip("no")
    def test_skipped(self): pass
    @unittest.expectedFailure
    def test_expected(self): self.fail()
    @unittest.expectedFailure
    def test_unexpected(self): pass
    def test_parts(self):
        for n in range(3):
            with self.subTest(n=n): self.assertLess(n, 2)
class TestB(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise ValueError("no")
    def test_never(self): pass
"""


async def test_skipped_tests_do_not_pass(room, tmp_path):
    result = await graded(room, tmp_path, RIGHT, SKIPPING, grading=FRACTION)
    failed = result.details["reported"]["failed"]
    assert "test_stats.py::TestA::test_ok" not in failed
    assert {name.rpartition("::")[2] for name in failed} >= {
        *("test_skipped", "test_expected", "test_unexpected", "test_parts", "test_never")
    }
    assert result.items["passed"] == 1.0


PLAIN = """
import unittest
from ramify_tests import CallFailed, isolated_call

class TestPlain(unittest.TestCase):
    def test_types(self):
        value = isolated_call("stats.py", "classes")
        self.assertIs(type(value[0]), int)
        self.assertIs(type(value[1]), str)
        self.assertIs(type(value[2]), dict)
        self.assertNotEqual(value[0], 8)
        self.assertEqual(value, [7, "a", {"k": [1.5, None, True]}])

    def test_failures(self):
        for name, kind in (("raises", "raised"), ("nan", "not_json"), ("thing", "not_json"),
                           ("gone", "missing"), ("leaves", "crashed"), ("huge", "too_large")):
            with self.subTest(name), self.assertRaises(CallFailed) as caught:
                isolated_call("stats.py", name)
            self.assertEqual(caught.exception.kind, kind, name)
        with self.assertRaises(CallFailed) as caught:
            isolated_call("stats.py", "raises")
        self.assertEqual(caught.exception.type, "KeyError")
        with self.assertRaises(CallFailed):
            isolated_call("none.py", "raises")

    def test_arguments(self):
        given = [1, 2.5, None, True, "\\u00e9\\ud800", {"a": [{}]}]
        self.assertEqual(isolated_call("stats.py", "echo", *given), given)
        with self.assertRaises(ValueError):
            isolated_call("stats.py", "echo", float("inf"))
        self.assertEqual(isolated_call("stats.py", "Thing.answer"), 42)
"""
MANY = """
import os
class I(int):
    __eq__ = lambda s, o: True
    __hash__ = int.__hash__
class S(str): pass
class D(dict): pass
class Thing:
    @staticmethod
    def answer(): return 42
def classes(): return (I(7), S("a"), D(k=[1.5, None, True]))
def raises(): raise KeyError("x")
def nan(): return float("nan")
def thing(): return Thing()
def leaves(): os._exit(0)
def huge(): return "x" * 9_000_000
def echo(*given): return given
"""


async def test_isolated_call_gives_plain_values(room, tmp_path):
    result = await graded(room, tmp_path, MANY, PLAIN)
    assert result.reward == 1.0, result.details


RUNS = """
import unittest
from ramify_tests import CallFailed, isolated_run

class TestRun(unittest.TestCase):
    def test_program(self):
        done = isolated_run(["sh", "-c", "cat; echo no >&2; id -u; exit 3"], stdin=b"\\xff\\n")
        self.assertEqual(done, (3, b"\\xff\\n61002\\n", b"no\\n"))
        self.assertEqual(isolated_run(["sh", "-c", "kill -9 $$"]).exit_code, 137)
        self.assertEqual(isolated_run(["no-such-program"]).exit_code, 127)

    def test_it_may_write_where_it_works(self):
        isolated_run(["sh", "-c", "echo made > made.txt"])
        with open("made.txt") as file:
            self.assertEqual(file.read(), "made\\n")

    def test_bounds(self):
        with self.assertRaises(CallFailed) as caught:
            isolated_run(["sh", "-c", "sleep 60 & sleep 60"], timeout_sec=0.2)
        self.assertEqual(caught.exception.kind, "timeout")
        with self.assertRaises(CallFailed) as caught:
            isolated_run(["yes"], output_limit=1000)
        self.assertEqual(caught.exception.kind, "too_large")
"""


@pytest.mark.parametrize("level", [IsolationLevel.OUTPUTS, IsolationLevel.WORKDIR])
async def test_isolated_run(room, tmp_path, level):
    result = await graded(room, tmp_path, RIGHT, RUNS, level=level)
    assert result.reward == 1.0, result.details


LINKS = """
import os, unittest
from ramify_tests import isolated_run

class TestLink(unittest.TestCase):
    def test_output(self):
        isolated_run(["python3", "stats.py"])
        here = os.path.dirname(__file__)
        with open("out.txt") as got, open(os.path.join(here, "expected.txt")) as expected:
            self.assertEqual(got.read(), expected.read())
"""
LINKING = [
    "import os\nos.symlink('/tests/expected.txt', 'out.txt')\n",
    "import os\nos.symlink('/tests', 'there')\nos.symlink('there/expected.txt', 'out.txt')\n",
    "import os\nos.symlink('/proc/self/cwd/../tests/expected.txt', 'out.txt')\n",
    "import os\nos.link('/tests/expected.txt', 'out.txt')\n",
    "import shutil\nshutil.copy('/tests/expected.txt', 'out.txt')\n",
]


@pytest.mark.parametrize("solution", LINKING)
async def test_links_to_what_is_hidden(room, tmp_path, solution):
    files = {"test_link.py": LINKS, "expected.txt": "42"}
    level = IsolationLevel.WORKDIR
    assert (await graded(room, tmp_path, solution, files, level=level)).reward == 0.0


async def test_an_output_that_is_right(room, tmp_path):
    files = {"test_link.py": LINKS, "expected.txt": "42"}
    right = "open('out.txt', 'w').write('42')\n"
    level = IsolationLevel.WORKDIR
    assert (await graded(room, tmp_path, right, files, level=level)).reward == 1.0


BOUNDS = """
import os, time, unittest
from ramify_tests import CallFailed, isolated_call

def processes():
    found = 0
    for name in os.listdir("/proc"):
        try:
            found += name.isdigit() and os.stat(f"/proc/{name}").st_uid == 61002
        except FileNotFoundError:
            continue
    return found

class TestBounds(unittest.TestCase):
    def test_time(self):
        before = processes()
        with self.assertRaises(CallFailed) as caught:
            isolated_call("stats.py", "hang", timeout_sec=0.3)
        self.assertEqual(caught.exception.kind, "timeout")
        deadline = time.monotonic() + 5
        while processes() > before and time.monotonic() < deadline: time.sleep(0.01)
        self.assertLessEqual(processes(), before)  # what started the tests may have ended

    def test_memory(self):
        with self.assertRaises(CallFailed) as caught:
            isolated_call("stats.py", "eat", memory_mb=200)
        self.assertEqual(caught.exception.type, "MemoryError")
"""
GREEDY = """
import os, time
def hang():
    if os.fork() == 0:
        os.setsid()
    time.sleep(60)
def eat(): return len(bytearray(1 << 30))
"""


async def test_the_calls_are_bounded(room, tmp_path):
    result = await graded(room, tmp_path, GREEDY, BOUNDS)
    assert result.reward == 1.0, result.details


ENVIRONMENT = """
import os, sys, unittest
import helpers
class TestEnvironment(unittest.TestCase):
    def test_variables(self):
        self.assertEqual({*os.environ}, {"PATH", "LANG", "HOME", "TMPDIR", "RAMIFY_WORKDIR"})
        self.assertEqual(os.getcwd(), "/app")
    def test_paths(self):
        self.assertNotIn("/app", sys.path)
        self.assertNotIn("", sys.path)
        self.assertEqual(helpers.VALUE, 5)
    def test_users(self):
        self.assertEqual((os.getuid(), os.getgid(), os.getgroups()), (61001, 61001, [61001]))
        self.assertEqual(oct(os.stat("/tests").st_mode & 0o777), "0o550")
        with self.assertRaises(PermissionError):
            open("/tests/helpers.py", "w")
"""


async def test_the_environment_is_ours(room, tmp_path):
    files = {"test_env.py": ENVIRONMENT, "helpers.py": "VALUE = 5\n"}
    result = await graded(
        room, tmp_path, {"helpers.py": "VALUE = 6\n"}, files, level=IsolationLevel.WORKDIR
    )
    assert result.reward == 1.0, result.details


async def test_no_such_runner(room, tmp_path):
    grading = TestGrading(runner="pytest")
    with pytest.raises(ConfigError, match=r"has no pytest .*; install it in the task.s image"):
        await graded(room, tmp_path, RIGHT, "def test_a(): pass\n", grading=grading)


async def test_tests_that_break_on_an_untouched_workspace(room, tmp_path):
    broken = IN_PROCESS.replace("class", "os._exit(0)\nclass")
    with pytest.raises(InfraError, match="on an untouched workspace it fails in the same way"):
        await graded(room, tmp_path, RIGHT, broken)
