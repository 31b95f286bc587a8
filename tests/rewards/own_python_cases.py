"""What every provider must make of the verifier's own Python; its test modules take these in.

`room` is the fixture of the module.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hard_stand import ISOLATED, RIGHT, graded

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.task import IsolationLevel

__all__ = [
    "pythons",
    "test_code_under_test_cannot_change_it",
    "test_code_under_test_that_owns_the_root_directory",
    "test_nothing_of_the_agents_takes_part",
    "test_planted_where_it_comes_to_lie",
    "test_prepared_once_and_anew_when_changed",
]

FILESYSTEM = IsolationLevel.FILESYSTEM
FROM_WHERE = """
import importlib, os, sys, unittest
import asyncio, ctypes, decimal, hashlib, json, random, sqlite3, ssl, subprocess, zlib

class TestPython(unittest.TestCase):
    def test_from_where(self):
        own = os.path.dirname(os.path.dirname(sys.executable))
        self.assertTrue(own.startswith("/ramify-verifier-python"))
        with open("/proc/self/maps") as file:
            mapped = {line.split(None, 5)[5].strip() for line in file if "/" in line}
        self.assertIn(own + "/bin/python3", mapped)
        for path in mapped:
            self.assertTrue(path.startswith(own), path)
        for name, module in sys.modules.items():
            file = getattr(module, "__file__", None) or own
            self.assertTrue(file.startswith((own, "/tests", "/ramify-verifier/")), file)
"""
# Where the interpreter lies is no secret to the code; it must not get at it.
SPOILS = """
import os, sys, tempfile

def tries(what, *paths):
    try:
        what(*paths)
        return [paths[0]]
    except OSError:
        return []

def spoiled():
    done = []
    own = os.path.dirname(os.path.dirname(sys.executable))
    for place in (own, *(os.path.join(own, name) for name in os.listdir(own))):
        done += tries(lambda path: open(path, "w").close(), os.path.join(place, "planted"))
        for name in os.listdir(place) if os.path.isdir(place) else []:
            path = os.path.join(place, name)
            done += tries(os.chmod, path, 0o777) + tries(os.rename, path, path + "x")
    mine = tempfile.mkdtemp()
    others = [os.path.join("/tmp", n) for n in os.listdir("/tmp") if n.startswith("ramify-tests")]
    for path in (own, "/tests", "/ramify-verifier", *others):
        done += tries(os.rename, path, path + "x") + tries(os.rename, path, mine + "/x")
    return done if others else ["the tests have no directory"]
"""
UNSPOILED = """
import unittest
from ramify_tests import isolated_call

class TestPython(unittest.TestCase):
    def test_unspoiled(self):
        self.assertEqual(isolated_call("stats.py", "spoiled"), [])
"""
OPENED = "chmod 777 / /tmp /var/tmp"
LED_AWAY = "mkdir -m 777 /opt/t; rm -rf /tmp; ln -s /opt/t /tmp"
PLANT = "; ".join(
    f"rm -rf {place}; mkdir -p /tmp/planted; ln -s /tmp/planted {place}"
    for place in ("/ramify-verifier-python", "/ramify-verifier")
)


@pytest.fixture
def pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is prepared is kept, in this test alone."""
    monkeypatch.setenv("RAMIFY_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "pythons"


def _prepared(pythons: Path) -> dict[Path, int]:
    """The trees that are there, with the inode of the interpreter."""
    trees = [path / "tree" for path in pythons.iterdir() if path.is_dir()]
    return {tree: (tree / "bin" / "python3").stat().st_ino for tree in trees}


async def test_nothing_of_the_agents_takes_part(room, tmp_path):
    result = await graded(room, tmp_path, RIGHT, FROM_WHERE, level=FILESYSTEM)
    assert result.reward == 1.0
    assert result.details["hardening"]["tools"] == "pristine"


async def test_prepared_once_and_anew_when_changed(room, tmp_path, pythons):
    wrong = RIGHT.replace("half - 1", "half")
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(graded(room, tmp_path / str(n), text, level=FILESYSTEM))
            for n, text in enumerate((RIGHT, wrong, RIGHT))
        ]
    assert [task.result().reward for task in tasks] == [1.0, 0.0, 1.0]
    once = _prepared(pythons)
    assert len(once) == 1
    assert (await graded(room, tmp_path / "again", RIGHT, level=FILESYSTEM)).reward == 1.0
    assert _prepared(pythons) == once

    loader = next(iter(once)) / "bin" / "loader"
    before = loader.stat()
    loader.chmod(0o755)
    loader.write_bytes(b"#!/bin/sh\nexit 0\n".ljust(before.st_size))
    loader.chmod(0o555)
    os.utime(loader, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await graded(room, tmp_path / "changed", RIGHT, level=FILESYSTEM)).reward == 1.0
    assert loader.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("script", ["", OPENED, LED_AWAY], ids=["", "opened", "led away"])
async def test_code_under_test_cannot_change_it(room, tmp_path, script):
    result = await graded(room, tmp_path, SPOILS, UNSPOILED, level=FILESYSTEM, script=script)
    assert result.reward == 1.0


async def test_code_under_test_that_owns_the_root_directory(room, tmp_path):
    work = graded(room, tmp_path, SPOILS, UNSPOILED, level=FILESYSTEM, script="chown 61002 / /tmp")
    try:
        found = (await work).reward
    except InvalidRewardError as error:  # where root may not take them back
        found = error.reason
    assert found in (1.0, "tampered")


async def test_planted_where_it_comes_to_lie(room, tmp_path):
    result = await graded(room, tmp_path, RIGHT, ISOLATED, level=FILESYSTEM, script=PLANT)
    assert result.reward == 1.0
