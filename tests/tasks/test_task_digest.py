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
from ramify.tasks.levels import LevelStore, Remembered
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


def test_what_was_found_is_remembered_by_digest_and_provider(tmp_path: Path, package: Path) -> None:
    store = LevelStore(tmp_path / "home")
    digest = package_digest(package)
    assert store.get(digest, "local") is None
    store.put(digest, "local", IsolationLevel.WORKDIR, Hardening.ISOLATED)
    store.put(digest, "docker", IsolationLevel.LIVE)
    store.put(digest, "docker", IsolationLevel.FILESYSTEM)
    again = LevelStore(tmp_path / "home")
    local, docker = again.get(digest, "local"), again.get(digest, "docker")
    assert local == Remembered(digest, IsolationLevel.WORKDIR, Hardening.ISOLATED, "local")
    assert docker == Remembered(digest, IsolationLevel.FILESYSTEM, Hardening.PLAIN, "docker")
    assert len(list((tmp_path / "home" / "levels").iterdir())) == 2


def test_what_was_found_with_another_provider_says_so(tmp_path: Path) -> None:
    store, digest = LevelStore(tmp_path), "ab" * 16
    store.put(digest, "my.package:Cloud", IsolationLevel.LIVE, Hardening.ISOLATED)
    found = store.get(digest, "docker")
    assert found is not None
    assert (found.provider, found.holds_for("docker")) == ("my.package:Cloud", False)
    assert store.get(digest, "my.package:Cloud") == found


@pytest.mark.parametrize(
    ("more", "hardening"), [("", Hardening.PLAIN), (',"hardening":"isolated"', Hardening.ISOLATED)]
)
def test_older_memory_counts_until_it_is_known_better(
    tmp_path: Path, more: str, hardening: Hardening
) -> None:
    store, digest = LevelStore(tmp_path), "ab" * 16
    (tmp_path / "levels").mkdir()
    old = f'{{"digest":"{digest}","level":"outputs"{more}}}'
    (tmp_path / "levels" / f"{digest}.json").write_text(old)
    found = store.get(digest, "docker")
    assert found == Remembered(digest, IsolationLevel.OUTPUTS, hardening)
    assert found is not None
    assert found.holds_for("docker")
    store.put(digest, "docker", IsolationLevel.LIVE)
    here, elsewhere = store.get(digest, "docker"), store.get(digest, "local")
    assert here is not None
    assert here.level is IsolationLevel.LIVE
    assert elsewhere == found


@pytest.mark.parametrize("content", [b"", b"{", b'{"digest":"x","level":"all"}', b"\xff"])
def test_a_damaged_level_counts_as_not_remembered(tmp_path: Path, content: bytes) -> None:
    store, digest = LevelStore(tmp_path), "ab" * 16
    store.put(digest, "local", IsolationLevel.LIVE)
    next((tmp_path / "levels").iterdir()).write_bytes(content)
    assert store.get(digest, "local") is None
    store.put(digest, "local", IsolationLevel.LIVE)
    assert store.get(digest, "local") is not None


def test_a_level_under_another_name_is_not_believed(tmp_path: Path) -> None:
    store = LevelStore(tmp_path)
    store.put("ab" * 16, "local", IsolationLevel.LIVE)
    levels = tmp_path / "levels"
    (levels / f"{'ab' * 16}.local.json").rename(levels / f"{'cd' * 16}.local.json")
    assert store.get("cd" * 16, "local") is None


def test_a_digest_cannot_name_another_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the digest of a task"):
        LevelStore(tmp_path).put("../../x", "local", IsolationLevel.LIVE)
