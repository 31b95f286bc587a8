"""Build contexts: what belongs to one, and when two are the same."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError
from ramify.planes.sandbox.docker.context import make_context


def names(root: Path, dockerfile: str = "Dockerfile", sources: Sequence[str] = ()) -> list[str]:
    context = make_context(root, dockerfile, sources)
    with context.archive:
        context.archive.seek(0)
        with tarfile.open(fileobj=context.archive) as archive:
            return archive.getnames()


def digest(root: Path, dockerfile: str = "Dockerfile", sources: Sequence[str] = ()) -> str:
    context = make_context(root, dockerfile, sources)
    context.archive.close()
    return context.digest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    for path in ("Dockerfile", "a.py", "a.log", "src/b.py", "src/b.log", "src/deep/c.log", "x/y/z"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


@pytest.mark.parametrize(
    ("ignore", "gone"),
    [
        ("", set()),
        ("*.log", {"a.log"}),
        ("**/*.log", {"a.log", "src/b.log", "src/deep/c.log"}),
        ("src", {"src", "src/b.py", "src/b.log", "src/deep", "src/deep/c.log"}),
        ("src/*.log\n", {"src/b.log"}),
        ("/x/", {"x", "x/y", "x/y/z"}),
        ("x/**/z", {"x/y/z"}),
        ("# a.py\n\n  a.py  ", {"a.py"}),
        ("src\n!src/deep/c.log", {"src", "src/b.py", "src/b.log", "src/deep"}),
        ("?.py", {"a.py"}),
        ("[ab].py", {"a.py"}),
        ("Dockerfile", set()),
        ("**", {"a.py", "a.log", "src", "src/b.py", "src/b.log", "src/deep", "src/deep/c.log",
                "x", "x/y", "x/y/z"}),
    ],
)  # fmt: skip
def test_dockerignore(root: Path, ignore: str, gone: set[str]) -> None:
    before = set(names(root))
    (root / ".dockerignore").write_text(ignore)
    assert before - set(names(root)) == gone


def test_a_dockerfile_can_have_its_own_rules(root: Path) -> None:
    (root / ".dockerignore").write_text("*.py")
    (root / "other").write_text("FROM x")
    (root / "other.dockerignore").write_text("*.log")
    assert "a.py" not in names(root)
    assert "a.py" in names(root, "other")


def test_a_build_sees_its_sources_and_nothing_else(root: Path) -> None:
    (root / "src/image").write_text("FROM x")
    (root / "x/unreadable").mkdir(mode=0)
    found = names(root, "src/image", ["a.py", "src/deep"])
    assert sorted(found) == ["a.py", "src/deep", "src/deep/c.log", "src/image"]
    (root / ".dockerignore").write_text("**/*.log\na.py\n")
    assert names(root, "src/image", ["a.py", "src/deep"]) == [
        ".dockerignore",
        "src/deep",
        "src/image",
    ]
    before = digest(root, "src/image", ["src/deep"])
    (root / "a.py").write_text("changed")
    assert digest(root, "src/image", ["src/deep"]) == before


def test_the_digest_is_of_the_content(root: Path) -> None:
    first = digest(root)
    os.utime(root / "a.py", (1, 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "s"))
        assert digest(root) == first
    changes = [
        lambda: (root / "a.py").write_text("other"),
        lambda: (root / "a.py").chmod(0o755),
        lambda: (root / "new").mkdir(),
        lambda: (root / "link").symlink_to("a.py"),
        lambda: (root / "src/b.py").rename(root / "src/d.py"),
    ]
    seen = {first}
    for change in changes:
        change()
        seen.add(digest(root))
    assert len(seen) == len(changes) + 1


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match="no such build context"):
        make_context(root / "none", "Dockerfile")
    with pytest.raises(ConfigError, match="Containerfile"):
        make_context(root, "Containerfile")
    (root / ".dockerignore").write_text("[z-a]")
    with pytest.raises(ConfigError, match="dockerignore"):
        make_context(root, "Dockerfile")
