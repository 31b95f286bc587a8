"""Copies of a solution are found by what is in them, wherever the task's own set-up left them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

import pytest

from ramify import compose
from ramify.contracts.sandbox import SandboxSpec
from ramify.contracts.task import SolutionSettings, Task, TaskPackage
from ramify.envs.leak_probe import Leaks, search_copies
from ramify.envs.leaks import Document, documents, found_in
from ramify.envs.options import RunOptions

TASK_TOML = """\
schema_version = "1.4"
[environment]
docker_image = "python:3.12-slim"
workdir = "/app"
network_mode = "no-network"
[ramify]
image_free = true
files = "environment/files"
outputs = ["stats.py"]
needs = ["git", "python3"]
setup = "setup.sh"
[ramify.tests]
runner = "unittest"
"""
LICENCE = "# Copyright (c) the authors. Licensed under the Apache License, Version 2.0.\n"
BEGUN = f"{LICENCE}import math\nfrom statistics import mean\n\ndef spread(values):\n    pass\n"
GOLD = f"""{LICENCE}import math
from statistics import mean

def spread(values):
    middle = mean(values)
    squares = [(value - middle) ** 2 for value in values]
    return math.sqrt(sum(squares) / (len(values) - 1))
"""
TEST = """\
import unittest
from ramify_tests import isolated_call

class TestSpread(unittest.TestCase):
    def test_spread(self):
        self.assertAlmostEqual(isolated_call("stats.py", "spread", [1, 2, 3]), 1.0)
"""
BEGIN = """#!/bin/sh -e
base64 -d gold.b64 > /tmp/gold
base64 -d test.b64 > /tmp/test
rm gold.b64 test.b64
mkdir -p /opt/x
git() { command git -c user.name=a -c user.email=a@b -c advice.detachedHead=false "$@"; }
git init -q
git add -A
git commit -qm start
"""
COMMITTED = "git checkout -q -b gold; cp /tmp/gold stats.py; git commit -qam 2; git checkout -q -\n"
FORGET = "git reflog expire --expire=all --all; rm -f .git/ORIG_HEAD\n"
HIDDEN = {
    "blob": "git hash-object -w /tmp/gold\n",
    "branch": COMMITTED,
    "ref": f"{COMMITTED}git update-ref refs/notes/x gold; git branch -qD gold\n{FORGET}",
    "packed-away": f"{COMMITTED}git repack -adq; git branch -qD gold\n{FORGET}",
    "reflog": f"{COMMITTED}git branch -qD gold; git gc -q\n",
    "stash": "cp /tmp/gold stats.py; git stash -q\n",
    "index": "cp /tmp/gold stats.py; git add stats.py; git reset -q --hard\n",
    "lost-found": "git hash-object -w /tmp/gold; git fsck --lost-found; rm -r .git/objects/??\n",
    "alternates": (
        f"{COMMITTED}git clone -q --bare --shared . /opt/x/other; mv .git/objects /opt/x/pool\n"
        "echo /opt/x/pool > /opt/x/other/objects/info/alternates; rm -rf .git\n"
    ),
    "bare": f"{COMMITTED}mv .git /opt/x/.cache; rm -f /opt/x/.cache/HEAD\n",
    "sha256": (
        "rm -rf .git; git init -q --object-format=sha256 /opt/x/y; cp /tmp/gold /opt/x/y/z\n"
        "cd /opt/x/y; git add z; git rm -qf --cached z; rm z\n"
    ),
    "patch": f"{COMMITTED}git diff HEAD gold > /opt/x/notes.txt; rm -rf .git\n",
    "renamed": "cp /tmp/gold /opt/x/.font.ttf\n",
    "package": "mkdir -p /opt/v/lib/python3/site-packages; cp /tmp/gold $_/_vendored.py\n",
    "gzip": "gzip < /tmp/gold > /opt/x/blob\n",
    "tar": "tar -C /tmp -cJf /opt/x/backup.dat gold\n",
    "wheel": "cd /tmp; python3 -m zipfile -c /opt/x/stats-1.0-py3-none-any.whl gold\n",
    "tests": "cp /tmp/test /opt/x/ci.txt\n",
    "clean": (
        "printf '%s\\n' '# Licensed under the Apache License, Version 2.0.' 'import math' "
        "'from statistics import mean' 'def spread(values):' > /opt/x/other.py\n"
        "gzip < /opt/x/other.py > /opt/x/other.gz; git stash list; git gc -q\n"
    ),
}
"""Where a copy lies → how it came there. All but the last are found."""
END = "rm -f /tmp/gold /tmp/test\n"


def make_task(place: Path, hide: str, *, begun: str = BEGUN, gold: str = GOLD) -> None:
    files = {
        "task.toml": TASK_TOML,
        "instruction.md": "Write spread(), the standard deviation of a sample.\n",
        "environment/files/stats.py": begun,
        "environment/files/gold.b64": base64.b64encode(gold.encode()).decode(),
        "environment/files/test.b64": base64.b64encode(TEST.encode()).decode(),
        "solution/stats.py": gold,
        "solution/solve.sh": "cp /solution/stats.py stats.py\n",
        "tests/test_stats.py": TEST,
        "setup.sh": f"{BEGIN}{hide}{END}",
    }
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)


async def searched(tasks: Path, scratch: Path, sandbox: str = "local") -> dict[str, Leaks]:
    provider = compose.sandbox_provider(sandbox)
    found: dict[str, Leaks] = {}
    try:
        search = search_copies(tasks, provider, RunOptions(), scratch)
        async with aclosing(search) as results:
            async for result, leaks in results:
                assert leaks is not None, result.error
                found[result.task_id.rpartition(":")[2]] = leaks
    finally:
        await provider.aclose()
    return found


LITTLE = {"begun": "a = 1\n" * 6, "gold": "a = 1\nb = 2\nc = 3\nd = 4\ne = 5\n"}
"""Too little to have a line of its own: found only as a whole."""
QUICK = ("blob", "wheel", "tests", "clean")


async def all_searched(names: Iterable[str], place: Path, sandbox: str = "local") -> None:
    for name in names:
        make_task(place / "tasks" / name, HIDDEN[name])
    make_task(place / "tasks" / "little", "git hash-object -w /tmp/gold\n", **LITTLE)
    make_task(place / "tasks" / "copy", "cp /tmp/gold /opt/x/y\n", **LITTLE)
    found = await searched(place / "tasks", place / "scratch", sandbox)
    assert found.keys() == {*names, "little", "copy"}
    assert {name: leaks.unseen for name, leaks in found.items() if leaks.unseen} == {}
    assert {name for name, leaks in found.items() if not leaks.found} == {"clean"}
    assert "lines of the tests (tests/test_stats.py)" in found["tests"].found[0]
    assert "git object" in found["blob"].found[0]
    assert "/opt/x/stats-1.0-py3-none-any.whl" in found["wheel"].found[0]
    assert found["copy"].found == ("/opt/x/y: the same as the solution's stats.py",)


@pytest.mark.namespaces
async def test_copies_are_found_by_their_content(tmp_path: Path) -> None:
    await all_searched(QUICK, tmp_path)


@pytest.mark.proof
@pytest.mark.namespaces
async def test_copies_are_found_wherever_they_are(tmp_path: Path) -> None:
    await all_searched(tuple(HIDDEN), tmp_path)


@pytest.mark.namespaces
async def test_what_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    """Without git inside, and with a compressed file that nothing there can read."""
    hide = f"{COMMITTED}rm -f /usr/bin/git /usr/bin/xz; printf '\\375\\067zXZ' > /opt/x/y\n"
    make_task(tmp_path / "tasks" / "blind", hide)
    found = await searched(tmp_path / "tasks", tmp_path / "scratch")
    assert found["blind"].found == ()
    assert sorted(found["blind"].unseen) == ["/app/.git/objects: no git", "/opt/x/y: no xz"]


def task_of(place: Path, instruction: str = "") -> Task:
    package = TaskPackage(str(place), "ab" * 16, SandboxSpec(), solution=SolutionSettings())
    return Task("t:x", input=instruction, package=package)


def test_what_gives_nothing_away_is_not_looked_for(tmp_path: Path) -> None:
    """Boilerplate, what the agent is told, and what already stood in what it is to change."""
    solution, tests = tmp_path / "solution" / "solve.sh", tmp_path / "tests" / "test_x.py"
    for place in (solution, tests):
        place.parent.mkdir()
    solution.write_text(
        "#!/bin/bash\nset -euo pipefail\n# Copyright (c) somebody\nimport numpy as np\n"
        "cd /app\ntold = first + second\nexisting = before(1)\nown_line = after(second)\n"
    )
    tests.write_text("assert openly_shown(1) == 2\nassert hidden_from_all(2) == 3\n")
    before = {"a.py": b"existing = before(1)\n", "shown.py": b"assert openly_shown(1) == 2\n"}
    after = {**before, "a.py": b"existing = before(1)\nown_line = after(second)\n"}
    wanted = documents(task_of(tmp_path, "told = first + second"), before, after)
    assert [(each.kind, each.name, set(each.lines)) for each in wanted] == [
        ("solution", "solution/solve.sh", {"own_line = after(second)"}),
        ("solution", "a.py", {"own_line = after(second)"}),
        ("tests", "tests/test_x.py", {"assert hidden_from_all(2) == 3"}),
    ]


def test_a_few_lines_in_common_are_no_copy() -> None:
    lines = [f"some_distinctive_line({number})" for number in range(10)]
    wanted = [Document("solution", "s", frozenset(lines))]
    assert found_in(wanted, {"/a": lines[:4]}) == {}
    assert found_in(wanted, {"/a": lines[:5]}) == {
        "/a": ["5 of 10 distinctive lines of the solution (s)"]
    }
    # What stands everywhere is nobody's.
    assert found_in(wanted, {f"/{number}": lines for number in range(40)}) == {}
