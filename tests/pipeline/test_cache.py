"""The build cache: found by what it was made from, never changed once it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ramify.apps.pipeline.cache import cache_entry, cache_key, keep_entry
from ramify.apps.pipeline.records import StepSpec

STEPS = (StepSpec("install", "npm ci"), StepSpec("test", "npm test"))
FILES = {"package-lock.json": "sha256:1"}


def key(
    repository: str = "/repo",
    files: dict[str, str] = FILES,
    image: str = "node:22",
    steps: tuple[StepSpec, ...] = STEPS,
) -> str:
    return cache_key(Path(repository), files, image, steps)


def test_whatever_it_depends_on_is_in_the_key() -> None:
    other = (StepSpec("install", "npm ci"), StepSpec("test", "npm test", env={"A": "1"}))
    keys = {
        key(),
        key(repository="/other"),
        key(files={"package-lock.json": "sha256:2"}),
        key(files={"yarn.lock": "sha256:1"}),
        key(image="node:23"),
        key(steps=STEPS[:1]),
        key(steps=other),
    }
    assert len(keys) == 7
    assert key() == key()


def made(root: Path, word: str) -> Path:
    place = root / f"made-{word}"
    place.mkdir()
    (place / "word").write_text(word)
    return place


def test_the_first_that_is_kept_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with cache_entry(cache, "k") as entry:
        assert entry is None
    assert keep_entry(cache, "k", made(tmp_path, "first"))
    second = made(tmp_path, "second")
    assert not keep_entry(cache, "k", second)
    assert (second / "word").read_text() == "second"
    with cache_entry(cache, "k") as entry:
        assert entry == cache / "k"
        assert (entry / "word").read_text() == "first"


def test_an_entry_that_is_a_link_is_none(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "k").symlink_to("outside")
    with cache_entry(tmp_path, "k") as entry:
        assert entry is None


def test_the_oldest_go_but_not_those_in_use(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for n in range(10):
        assert keep_entry(cache, f"k{n}", made(tmp_path, str(n)))
        os.utime(cache / f"k{n}", (n, n))
    (cache / ".removed-x").mkdir()
    with cache_entry(cache, "k0"):  # using it makes it the newest
        assert keep_entry(cache, "k10", made(tmp_path, "10"))
    assert {entry.name for entry in cache.iterdir()} == {"k0", *(f"k{n}" for n in range(2, 11))}
    os.utime(cache / "k2", (1, 1))
    with cache_entry(cache, "k2"):
        os.utime(cache / "k2", (1, 1))
        assert keep_entry(cache, "k11", made(tmp_path, "11"))
        assert (cache / "k2").is_dir()


def test_a_reader_does_not_hide_a_failure_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    with pytest.raises(OSError, match="mine"), cache_entry(tmp_path, "k"):
        raise OSError("mine")
