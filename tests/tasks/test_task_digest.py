"""What identifies a package, and the isolation level remembered for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError
from ramify.contracts.task import Hardening, IsolationLevel
from ramify.tasks.digest import package_digest
from ramify.tasks.levels import LevelStore
from ramify.tasks.scaffold import init_task


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = init_task(tmp_path / "task", "task")
    (root / "link").symlink_to("tests/test.sh")
    return root


def test_a_copy_elsewhere_has_the_same_digest(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "other-name"
    shutil.copytree(package, copy, symlinks=True)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)
    (copy / "empty").mkdir()
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("x")
    assert package_digest(copy) == package_digest(package)


def _relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("tests/../tests/test.sh")


CHANGES: dict[str, Callable[[Path], object]] = {
    "bytes": lambda root: (root / "instruction.md").write_text("x"),
    "name": lambda root: (root / "instruction.md").rename(root / "instruction.txt"),
    "executable": lambda root: (root / "tests" / "test.sh").chmod(0o644),
    "link target": _relink,
    "file more": lambda root: (root / "tests" / "new").write_text(""),
    "file less": lambda root: (root / "tests" / "test.sh").unlink(),
    "hidden": lambda root: (root / ".hidden").write_text(""),
    "content moved between files": lambda root: (
        (root / "a").write_text("bc"),
        (root / "ab").write_text("c"),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_content_changes_it(package: Path, change: str) -> None:
    before = package_digest(package)
    CHANGES[change](package)
    if change == "file less":
        (package / "link").unlink()
    assert package_digest(package) != before


def test_names_and_contents_do_not_run_into_each_other(tmp_path: Path) -> None:
    digests: set[str] = set()
    for number, (name, text) in enumerate([("a", "bc"), ("ab", "c"), ("abc", "")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_text(text)
        digests.add(package_digest(tmp_path / str(number)))
    assert len(digests) == 3


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../outside", "tests/../../outside", "tests/up/etc/passwd"]
)
def test_links_that_leave_the_package_are_refused(package: Path, target: str) -> None:
    (package.parent / "outside").write_text("secret")
    if "up" in target:
        (package / "tests" / "up").symlink_to("/")
    (package / "escape").symlink_to(target)
    with pytest.raises(ConfigError, match="is a link that leaves the task directory"):
        package_digest(package)


def test_special_files_are_refused(package: Path) -> None:
    os.mkfifo(package / "tests" / "pipe")
    with pytest.raises(ConfigError, match="neither a file, a directory nor a link"):
        package_digest(package)


def test_levels_are_remembered_by_digest(tmp_path: Path, package: Path) -> None:
    store = LevelStore(tmp_path / "home")
    digest = package_digest(package)
    assert store.get(digest) is None
    store.put(digest, IsolationLevel.WORKDIR)
    store.put(digest, IsolationLevel.FILESYSTEM)
    assert LevelStore(tmp_path / "home").get(digest) is IsolationLevel.FILESYSTEM
    assert [p.name for p in (tmp_path / "home" / "levels").iterdir()] == [f"{digest}.json"]


def test_a_profile_is_remembered_and_an_old_record_means_plain(tmp_path: Path) -> None:
    store, digest = LevelStore(tmp_path), "ab" * 16
    assert store.hardening(digest) is None
    store.put(digest, IsolationLevel.WORKDIR, Hardening.ISOLATED)
    assert store.hardening(digest) is Hardening.ISOLATED
    old = f'{{"digest":"{digest}","level":"outputs"}}'
    (tmp_path / "levels" / f"{digest}.json").write_text(old)
    assert (store.get(digest), store.hardening(digest)) == (
        IsolationLevel.OUTPUTS,
        Hardening.PLAIN,
    )


@pytest.mark.parametrize("content", [b"", b"{", b'{"digest":"x","level":"all"}', b"\xff"])
def test_a_damaged_level_counts_as_not_remembered(tmp_path: Path, content: bytes) -> None:
    store = LevelStore(tmp_path)
    store.put("ab" * 16, IsolationLevel.LIVE)
    (tmp_path / "levels" / f"{'ab' * 16}.json").write_bytes(content)
    assert store.get("ab" * 16) is None
    store.put("ab" * 16, IsolationLevel.LIVE)
    assert store.get("ab" * 16) is IsolationLevel.LIVE


def test_a_level_under_another_name_is_not_believed(tmp_path: Path) -> None:
    store = LevelStore(tmp_path)
    store.put("ab" * 16, IsolationLevel.LIVE)
    levels = tmp_path / "levels"
    (levels / f"{'ab' * 16}.json").rename(levels / f"{'cd' * 16}.json")
    assert store.get("cd" * 16) is None


def test_a_digest_cannot_name_another_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the digest of a task"):
        LevelStore(tmp_path).put("../../x", IsolationLevel.LIVE)
