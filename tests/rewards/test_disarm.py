"""Git repositories of an agent's, made harmless: what stays, what goes, and what is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.planes.reward.disarm import disarmed_in, keeps
from ramify.planes.reward.gitconfig import Entry, parse_config

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
BARE = {"HEAD": "ref: refs/heads/main\n", "objects/a": "", "refs/a": ""}
EVIL = "[core]\n\tbare = true\n\tfsmonitor = /evil\n[diff]\n\texternal = /evil\n"


def make(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def git(*words: str, at: Path) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=at, check=True, capture_output=True, text=True, timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("[core] bare = false", True),
        ("[core] filemode", True),
        ("[remote \"o\"] url = https://example.com/a.git", True),
        ("[remote \"o\"] url = git@example.com:a.git", True),
        ("[remote \"o\"] url = ../a", True),
        ("[remote \"o\"] url = file:///srv/a", True),
        ("[remote \"o\"] fetch = +refs/heads/*:refs/remotes/o/*", True),
        ("[branch \"a\"] remote = o", True),
        ("[user] email = a@b", True),
        ("[extensions] objectFormat = sha256", True),
        ("[submodule \"a\"] url = ./a", True),
        ("[remote \"o\"] url = ext::sh -c x", False),
        ("[remote \"o\"] url = ext://sh", False),
        ("[remote \"o\"] url = fd::7", False),
        ("[remote \"o\"] url = \"a\\nb\"", False),
        ("[remote \"o\"] url = --upload-pack=x", False),
        ("[remote \"o\"] url", False),
        ("[remote \"o\"] pushurl = ext::x", False),
        ("[remote \"o\"] vcs = x", False),
        ("[remote \"o\"] uploadpack = x", False),
        ("[remote \"o\"] receivepack = x", False),
        ("[remote \"o\"] proxy = x", False),
        ("[branch \"a\"] remote = ext::x", False),
        ("[branch \"a\"] mergeoptions = -s x", False),
        ("[submodule \"a\"] update = !x", False),
        ("[submodule \"a\"] url = ext::x", False),
        ("[url \"ext::x\"] insteadOf = https://", False),
        ("[include] path = x", False),
        ("[includeIf \"gitdir:/\"] path = x", False),
        ("[filter \"a\"] clean = x", False),
        ("[filter \"a\"] process = x", False),
        ("[diff \"a\"] textconv = x", False),
        ("[diff] external = x", False),
        ("[merge \"a\"] driver = x", False),
        ("[alias] st = !x", False),
        ("[credential] helper = x", False),
        ("[gpg] program = x", False),
        ("[protocol \"ext\"] allow = always", False),
        ("[http] proxy = x", False),
        ("[core] fsmonitor = x", False),
        ("[core] hooksPath = x", False),
        ("[core] sshCommand = x", False),
        ("[core] pager = x", False),
        ("[core] editor = x", False),
        ("[core] askpass = x", False),
        ("[core] worktree = /", False),
        ("[core] attributesFile = x", False),
        ("[core] alternateRefsCommand = x", False),
        ("[core \"x\"] bare = true", False),
        ("[uploadpack] packObjectsHook = x", False),
    ],
)  # fmt: skip
def test_what_stays_of_a_configuration(text: str, stays: bool) -> None:
    (entry,) = parse_config(text.encode())
    assert keeps(entry) is stays


@pytest.mark.parametrize(
    "place",
    [".git", "data", "deep/er/x.git", ".git/modules/a", ".git/refs/x", "hooks/b", "objects/b"],
)
def test_a_repository_anywhere(tmp_path: Path, place: str) -> None:
    tree = make(tmp_path / "tree", {f"{place}/{name}": text for name, text in BARE.items()})
    hook = {f"{place}/config": EVIL, f"{place}/hooks/pre-commit": "evil"}
    make(tree, hook | {f"{place}/config.worktree": EVIL, f"{place}/remotes/o": "URL: ext::x"})
    notes = disarmed_in(tree, "app")
    config = parse_config((tree / place / "config").read_bytes())
    assert config == [Entry(b"core", None, b"bare", b"true")]
    assert not (tree / place / "hooks").exists()
    assert not (tree / place / "remotes").exists()
    assert b"evil" not in (tree / place / "config.worktree").read_bytes()
    assert notes == [f"{place}: hooks, remotes" + ", core.fsmonitor, diff.external" * 2]
    assert disarmed_in(tree, "app") == []


def test_what_is_none_is_left_alone(tmp_path: Path) -> None:
    files = {"config": EVIL, "hooks/a": "b", "src/HEAD": "", "src/config": EVIL, "x/refs": "y"}
    tree = make(tmp_path / "tree", files)
    assert disarmed_in(tree, "app") == []
    assert {name: (tree / name).read_text() for name in files} == files
    assert disarmed_in(make(tmp_path / "one", {"f": EVIL}) / "f", "f") == []


def test_what_will_be_one(tmp_path: Path) -> None:
    """`git init` makes a repository of what lacks all but the name, and where a link leads."""
    tree = make(tmp_path / "tree", {".git/config": EVIL, "meta/config": EVIL, "b/c": ""})
    (tree / "b/.git").symlink_to("../meta")
    (tree / "b/x.git").symlink_to("../../../..")
    assert len(disarmed_in(tree, "app")) == 2
    assert b"evil" not in (tree / ".git/config").read_bytes() + (tree / "meta/config").read_bytes()
    alone = make(tmp_path / "alone", {"config": EVIL})
    assert disarmed_in(alone, "repo.git") == [".: core.fsmonitor, diff.external"]


def test_the_main_part_of_a_worktree(tmp_path: Path) -> None:
    tree = make(tmp_path / "tree", {".git/worktrees/a/commondir": "../..\n", ".git/config": EVIL})
    make(tree, {".git/worktrees/a/config.worktree": EVIL, "x/.git/commondir": "../../meta\n"})
    notes = disarmed_in(tree, "app")
    assert (tree / ".git/worktrees/a/commondir").exists()
    assert not (tree / "x/.git/commondir").exists()
    assert sorted(notes) == [
        ".git/worktrees/a: core.fsmonitor, diff.external",
        ".git: core.fsmonitor, diff.external",
        "x/.git: commondir",
    ]


def test_links_are_not_followed(tmp_path: Path) -> None:
    host = make(tmp_path / "host", {"config": EVIL, "hooks/a": "a", "sub/objects/a": "", "c": ""})
    tree = make(tmp_path / "tree", {".git/HEAD": "", ".git/objects/a": "", ".git/refs/a": ""})
    for name in ("config", "hooks", "commondir", "config.worktree"):
        (tree / ".git" / name).symlink_to(host / name)
    (tree / "sub.git").symlink_to(host)
    (tree / "way").symlink_to(host)
    assert disarmed_in(tree, "app")[0].startswith(".git: hooks, commondir, config (no regular")
    assert sorted(os.listdir(tree / ".git")) == ["HEAD", "objects", "refs"]
    assert (host / "config").read_text() == EVIL
    assert (host / "hooks/a").exists()


def test_what_a_rebase_would_run(tmp_path: Path) -> None:
    host = make(tmp_path / "host", {"git-rebase-todo": "exec evil\n"})
    tree = make(tmp_path / "tree", {".git/rebase-merge/git-rebase-todo": "exec evil\n"})
    make(tree, {".git/rebase-merge/done": "pick a\n", "file.git/rebase-merge": "a file\n"})
    (tree / "link.git").mkdir()
    (tree / "link.git/rebase-merge").symlink_to(host)
    assert sorted(disarmed_in(tree, "app")) == [
        ".git: git-rebase-todo",
        "link.git: git-rebase-todo",
    ]
    assert os.listdir(tree / ".git/rebase-merge") == ["done"]
    assert os.listdir(host) == ["git-rebase-todo"]


def test_bounds(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(30):
        make(tree, {f"{number:02}.git/config": EVIL + "#" * 250_000})
    make(tree, {"big.git/config": EVIL + "#" * 300_000, "bad.git/config": "[core\n"})
    make(tree, {"odd\n\x1b[2J.git/config": '[alias "\x1b[2J"]\nk = v\n' + "[a]k\n" * 2000})
    notes = disarmed_in(tree, "app")
    assert len(notes) == 20
    assert all(len(note) < 250 and note.isprintable() for note in notes)
    for path in tree.glob("*.git/config"):
        assert b"evil" not in path.read_bytes()
        assert path.stat().st_size < 100


@needs_git
def test_an_honest_repository_goes_on(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    git("init", "-q", "-b", "main", at=tree)
    make(tree, {"a.txt": "a\n"})
    git("add", "-A", at=tree)
    git("commit", "-qm", "one", at=tree)
    git("remote", "add", "origin", "https://example.com/a.git", at=tree)
    git("branch", "hooks/config", at=tree)
    git("worktree", "add", "-q", "../tree/side", at=tree)
    make(tree, {"b.txt": "b\n"})
    views = [("status", "--porcelain"), ("log", "--oneline", "--all"), ("branch", "-a"),
             ("remote", "-v"), ("worktree", "list"), ("fsck",)]  # fmt: skip
    before = [git(*view, at=tree) for view in views]
    assert disarmed_in(tree, "app") == []
    assert [git(*view, at=tree) for view in views] == before
    git("add", "-A", at=tree)
    git("commit", "-qm", "two", at=tree)


_VALUES = st.text(alphabet="abc /:!\"'\\;#\t$()", max_size=12).map(str.encode)
_NAMES = st.sampled_from([b"core", b"remote", b"branch", b"diff", b"filter", b"include", b"alias"])
_KEYS = st.sampled_from([b"url", b"fetch", b"bare", b"external", b"clean", b"path", b"fsmonitor"])
_LINES = st.tuples(_NAMES, st.sampled_from([b"", b' "x"', b' "ext::y"']), _KEYS, _VALUES)


@needs_git
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(_LINES, max_size=8), noise=st.binary(max_size=12))
def test_git_sees_nothing_that_may_not_stay(
    tmp_path: Path, lines: list[tuple[bytes, bytes, bytes, bytes]], noise: bytes
) -> None:
    tree = make(tmp_path / "tree", {".git/HEAD": ""})
    config = tree / ".git" / "config"
    body = b"".join(b"[%s%s]\n%s = %s\n" % line for line in lines)
    config.write_bytes(body + noise)
    disarmed_in(tree, "app")
    seen = git("config", "--file", str(config), "--list", at=tree)
    for line in seen.splitlines():
        name, _, value = line.partition("=")
        assert name.split(".")[0] in ("core", "remote", "branch"), line
        assert name.rpartition(".")[2] in ("bare", "url", "fetch"), line
        assert "::" not in value or name.endswith("fetch"), line
