"""Our reading of `.gitignore` against git's own, on trees and rules made up by hypothesis."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.apps.pipeline.ignore import Ignores

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")

NAMES = st.sampled_from(["a", "b", "ab", "build", "x.pyc", "a b", "A", "[a]", "é", "\\", "!a"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PIECES = st.sampled_from(
    ["*", "**", "?", "/", "a", "b", "ab", "[ab]", "[!a]", "[a-c]", "[[:alpha:]]", "\\", " ", "!",
     "#", "build", "*.pyc", "[", "]", "**/", "/**", "é", "-", "."]
)  # fmt: skip
LINES = st.lists(PIECES, min_size=1, max_size=5).map("".join)
RULES = st.lists(LINES, min_size=0, max_size=5).map("\n".join)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ignores")


def ask_git(repo: Path, paths: list[str]) -> set[str]:
    asked = "".join(f"{path}\0" for path in paths)
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=repo, input=asked.encode(), capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(repo), "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return set(filter(None, done.stdout.decode().split("\0")))


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PATHS, min_size=1, max_size=6), RULES, RULES, NAMES, RULES)
def test_we_ignore_what_git_ignores(
    place: Path, paths: list[str], rules: str, deeper: str, below: str, exclude: str
) -> None:
    repo = place / "repo"
    shutil.rmtree(repo, ignore_errors=True)
    repo.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=repo, check=True)
    made: list[str] = []
    for path in paths:
        try:
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).touch()
        except OSError:  # a file stands where a directory is wanted
            continue
        made.append(path)
    (repo / ".gitignore").write_text(rules)
    if (repo / below).is_dir():
        (repo / below / ".gitignore").write_text(deeper)
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "exclude").write_text(exclude)

    def read(directory: str) -> bytes | None:
        file = repo / directory / ".gitignore"
        return file.read_bytes() if file.is_file() else None

    ours = Ignores(read, exclude.encode())
    files = [path for path in made if (repo / path).is_file()]
    assert {p for p in files if ours.ignored(p, is_directory=False)} == ask_git(repo, files)


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("node_modules/", "node_modules/x/y.js", True),
        ("/build", "src/build", False),
        ("*.log\n!keep.log", "keep.log", False),
        ("dir\n!dir/keep", "dir/keep", True),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("**/foo", "x/y/foo", True),
        ("foo/**", "foo", False),
        ("trailing\\ ", "trailing ", True),
        ("\\#x", "#x", True),
        ("x  ", "x", True),
    ],
)
def test_known_rules(rules: str, path: str, expected: bool) -> None:
    ignores = Ignores(lambda place: rules.encode() if not place else None)
    assert ignores.ignored(path, is_directory=False) is expected
