"""pytest under our own runner, in an image that has it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hard_stand import graded
from verifier_stand import Room

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.sandbox import BuildSpec, SandboxSpec
from ramify.contracts.task import IsolationLevel, TestGrading
from ramify.planes.sandbox.docker import DockerProvider

IMAGE = os.environ.get("RAMIFY_TEST_IMAGE", "debian:bookworm")
PACKAGES = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")
PYTHON = "/usr/bin/python3"
RUN = TestGrading(runner="pytest", python=PYTHON)
FRACTION = TestGrading(runner="pytest", python=PYTHON, fraction=True)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def room(
    docker_problem: str | None, ramify_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Room | None]:
    if docker_problem is not None:
        yield None  # the mark skips each test, or fails it on CI
        return
    context = tmp_path_factory.mktemp("image")
    for name in PACKAGES:
        source = Path(sysconfig.get_paths()["purelib"]) / name
        shutil.copytree(source, context / "lib" / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copy(Path(sysconfig.get_paths()["purelib"]) / "py.py", context / "lib")
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY lib /usr/lib/python3/dist-packages/\n")
    provider = DockerProvider(ramify_home)
    try:
        yield Room(provider, SandboxSpec(build=BuildSpec(str(context)), workdir="/app"))
    finally:
        await provider.aclose()


TESTS = """
import os, sys
import pytest
from ramify_tests import isolated_call

@pytest.mark.parametrize(("values", "middle"), [([3, 1, 2], 2), ([4, 1, 2, 3], 2.5)])
def test_median(values, middle):
    assert isolated_call("stats.py", "median", values) == middle

class TestMore:
    def test_one(self, tmp_path):
        assert isolated_call("stats.py", "median", [1]) == 1

def test_fixture(number):
    assert number == 5
"""
CONFTEST = "import pytest\n@pytest.fixture\ndef number(): return 5\n"
FILES = {"test_stats.py": TESTS, "conftest.py": CONFTEST}
RIGHT = """
def median(values):
    values = sorted(values)
    half, odd = divmod(len(values), 2)
    return values[half] if odd else (values[half - 1] + values[half]) / 2
"""
WRONG = "def median(values): return -1\n"


async def test_honest(room, tmp_path):
    result = await graded(room, tmp_path, RIGHT, FILES, grading=RUN)
    assert result.reward == 1.0, result.details
    assert result.items == {"tests": 3.0, "passed": 3.0}
    assert result.details["reported"]["reported"] == 4
    assert result.details["process"] == "separate_process"
    assert result.details["hardening"]["runner"].startswith("pytest ")


async def test_wrong(room, tmp_path):
    result = await graded(room, tmp_path, WRONG, FILES, grading=FRACTION)
    assert result.reward == pytest.approx(1 / 3)


IN_PROCESS = """
import sys
sys.path.append("/app")
def test_median():
    from stats import median
    assert median([3, 1, 2]) == 2
"""
FROM_CALL = """
import _pytest.runner as r
old = r.CallInfo.from_call.__func__
def from_call(cls, func, when, reraise=None):
    def quiet():
        try: func()
        except BaseException: pass
    return old(cls, quiet, when, reraise)
r.CallInfo.from_call = classmethod(from_call)
"""
REPORTS = """
import _pytest.reports as r
old = r.TestReport.from_item_and_call.__func__
def new(cls, item, call):
    report = old(cls, item, call)
    report.outcome, report.longrepr = "passed", None
    return report
r.TestReport.from_item_and_call = classmethod(new)
"""
HOOK = """
import gc, pytest
from _pytest.config import Config
class P:
    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        report.outcome = "passed"
for o in gc.get_objects():
    if isinstance(o, Config): o.pluginmanager.register(P())
"""
CONFIGURATION = {
    "conftest.py": """
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    (yield).get_result().outcome = "passed"
""",
    "pytest.ini": "[pytest]\naddopts = --collect-only -p evil\npython_files = nothing\n",
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--collect-only"\n',
    "setup.cfg": "[tool:pytest]\naddopts = --collect-only\n",
    "tox.ini": "[pytest]\naddopts = --collect-only\n",
    "pytest.py": "import os; os._exit(0)\n",
    "_pytest/__init__.py": "import os; os._exit(0)\n",
    "evil.py": "import os; os._exit(0)\n",
    "sitecustomize.py": "import os; os._exit(0)\n",
    "x.dist-info/entry_points.txt": "[pytest11]\nevil = evil\n",
    "x.dist-info/METADATA": "Metadata-Version: 2.1\nName: x\nVersion: 1\n",
}
ATTACKS = {
    "r03 configuration and shadows": (CONFIGURATION | {"stats.py": WRONG}, 0.0),
    "r13 CallInfo.from_call patched": (FROM_CALL + WRONG, "tampered"),
    "reports patched": (REPORTS + WRONG, "tampered"),
    "a hook wrapper registered": (HOOK + WRONG, "tampered"),
    "r15 skips": ("import pytest\npytest.skip('no', allow_module_level=True)\n", 0.0),
    "xfails": ("import pytest\ndef median(v): pytest.xfail('no')\n", 0.0),
    "stops the session": ("import pytest\npytest.exit('done', 0)\n", "tampered"),
    "leaves at import": ("import os\nos._exit(0)\n", "missing"),
    "r09 atexit": ("import atexit, os\natexit.register(os._exit, 0)\n" + WRONG, 0.0),
    "raises KeyboardInterrupt": ("raise KeyboardInterrupt\n", "tampered"),
}


@pytest.mark.parametrize("name", list(ATTACKS))
async def test_attack(room, tmp_path, name):
    solution, expected = ATTACKS[name]
    level = IsolationLevel.WORKDIR
    work = graded(room, tmp_path, solution, IN_PROCESS, level=level, grading=RUN)
    if isinstance(expected, float):
        assert (await work).reward == expected
        return
    with pytest.raises(InvalidRewardError) as caught:
        await work
    assert caught.value.reason == expected


OWN = {
    "pytest.ini": "[pytest]\nmarkers = slow: takes long\naddopts = --strict-markers\n",
    "test_own.py": "import pytest\n@pytest.mark.slow\ndef test_it(): assert True\n",
}


async def test_the_tests_may_have_settings_of_their_own(room, tmp_path):
    assert (await graded(room, tmp_path / "own", RIGHT, OWN, grading=RUN)).reward == 1.0
    without = {
        "test_own.py": OWN["test_own.py"],
        "pytest.ini": "[pytest]\naddopts=--strict-markers",
    }
    assert (await graded(room, tmp_path / "not", RIGHT, without, grading=RUN)).reward == 0.0
