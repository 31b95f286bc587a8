"""What Git LFS keeps outside of a repository is what was committed, while it has that content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_stand import commit, git, make_repository, pipeline, provider_of, verify

from ramify.apps.pipeline.lfs import Pointer, read_pointer
from ramify.apps.pipeline.snapshot import changed_since, take_snapshot
from ramify.contracts.errors import ConfigError

CONTENT = b"\x00large\n" * 1000


def pointer(content: bytes) -> bytes:
    """As git-lfs writes it."""
    sha256 = hashlib.sha256(content).hexdigest()
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
    ).encode()


def with_lfs(place: Path) -> Path:
    """A repository with `large.bin`: committed as a pointer, checked out with its content."""
    repo = make_repository(place)
    (repo / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (repo / "large.bin").write_bytes(pointer(CONTENT))
    commit(repo, "large")  # without the filter: the pointer itself
    (repo / "large.bin").write_bytes(CONTENT)
    return repo


async def test_content_and_pointer_are_both_clean(tmp_path: Path) -> None:
    repo = with_lfs(tmp_path)
    smudged = await take_snapshot(repo, tmp_path / "1")
    assert not smudged.dirty
    assert smudged.tree == git(repo, "rev-parse", "HEAD^{tree}")
    (repo / "large.bin").touch()
    assert await changed_since(repo, smudged) == []
    (repo / "large.bin").write_bytes(pointer(CONTENT))
    assert await changed_since(repo, smudged) == ["large.bin"]  # steps would see another file
    assert not (await take_snapshot(repo, tmp_path / "2")).dirty


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"x", b"", pointer(b"else")])
async def test_other_content_is_dirty(content: bytes, tmp_path: Path) -> None:
    repo = with_lfs(tmp_path)
    (repo / "large.bin").write_bytes(content)
    snapshot = await take_snapshot(repo, tmp_path / "git")
    assert snapshot.dirty
    assert snapshot.patch_sha256
    assert snapshot.tree != git(repo, "rev-parse", "HEAD^{tree}")


async def test_a_mode_is_dirty_whatever_the_content(tmp_path: Path) -> None:
    repo = with_lfs(tmp_path)
    (repo / "large.bin").chmod(0o755)
    assert (await take_snapshot(repo, tmp_path / "git")).dirty


@pytest.mark.namespaces
async def test_protected_content(tmp_path: Path) -> None:
    repo = with_lfs(tmp_path)
    failing = pipeline("true", protected_paths=("*.bin",))
    restoring = pipeline("true", protected_paths=("*.bin",), protected="restore")
    async with provider_of("local") as provider:
        assert (await verify(provider, repo, failing)).passed
        (repo / "large.bin").write_bytes(b"else")
        assert (await verify(provider, repo, failing)).reason == "protected_changed"
        with pytest.raises(ConfigError, match="kept by Git LFS"):
            await verify(provider, repo, restoring)


def test_what_is_no_pointer() -> None:
    good = pointer(CONTENT)
    assert read_pointer(good) == Pointer(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    for bad in (b"", good[1:], good.replace(b"size", b"sise"), good.replace(b"sha256", b"sha512")):
        assert read_pointer(bad) is None
    assert read_pointer(good + b"x" * 1024) is None


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    read_pointer(b"version https://git-lfs.github.com/spec/v1\n" + data)
