"""Datasets by id: from a directory, and from a registry whose repositories are checked out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.contracts.task import Taskset
from ramify.tasks.registry import HarborTaskset
from ramify.tasks.scaffold import init_task

URL = "https://example.org/owner/repo.git"


def _git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Place:
    def __init__(self, root: Path) -> None:
        self.checkouts = root / "checkouts"
        self.repo = self.checkouts / "owner" / "repo"
        init_task(self.repo / "tasks" / "one", "one")
        _git("init", "-q", str(self.repo))
        _git("-C", str(self.repo), "add", ".")
        _git("-C", str(self.repo), "commit", "-qm", "x")
        self.commit = _git("-C", str(self.repo), "rev-parse", "HEAD")
        self.registry = root / "registry.json"
        init_task(root / "local", "local")
        self.write({})

    def write(self, change: dict[str, Any]) -> None:
        entry = {"name": "first", "git_url": URL, "git_commit_id": self.commit, "path": "tasks/one"}
        datasets = [
            {"name": "set", "version": "1.0", "tasks": [{**entry, **change}, {"path": "local"}]},
            {"name": "set", "version": "2.0", "description": "", "tasks": []},
        ]
        self.registry.write_text(json.dumps(datasets))

    def open(self, name: str = "set@1.0") -> HarborTaskset:
        return HarborTaskset(name, registry=self.registry, checkouts=self.checkouts)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_dataset_of_a_registry(place: Place) -> None:
    taskset = place.open()
    assert isinstance(taskset, Taskset)
    assert [task.task_id for task in taskset] == ["set@1.0:first", "set@1.0:local"]
    assert taskset.get_task("first").package is not None
    place.registry.write_text(json.dumps({"datasets": json.loads(place.registry.read_text())}))
    assert len(place.open()) == 2


def test_a_directory_under_an_id(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    taskset = HarborTaskset("mine", path=place.repo / "tasks")
    assert [task.task_id for task in taskset] == ["mine:one"]
    home = place.checkouts.parent / "home"
    monkeypatch.setenv("RAMIFY_HOME", str(home))
    (home / "datasets").mkdir(parents=True)
    (home / "datasets" / "kept").symlink_to(place.repo / "tasks")
    assert [task.task_id for task in HarborTaskset(taskset_id="kept")] == ["kept:one"]
    with pytest.raises(ConfigError, match=r"registry.json: cannot be read.*-T path="):
        HarborTaskset(taskset_id="other")


@pytest.mark.parametrize("name", ["set", "set@3.0", "other"])
def test_an_unknown_dataset(place: Place, name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"set@1\.0"):
        place.open(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"git_url": "git@host:owner/none.git"}, "run `git clone git@host:owner/none.git"),
        ({"git_url": "https://host/../.."}, "is not checked out"),
        ({"git_commit_id": "0" * 40}, "is not at commit 0000"),
        ({"path": "../../.."}, "leaves its repository"),
        ({"path": "tasks/none"}, "there is no directory"),
        ({"name": "local"}, "names a task twice"),
        ({"path": 3}, "is not a registry: "),
    ],
)
def test_what_cannot_be_resolved(place: Place, change: dict[str, Any], message: str) -> None:
    place.write(change)
    with pytest.raises(ConfigError) as caught:
        place.open()
    assert message in str(caught.value)
    assert str(place.registry) in str(caught.value)


def test_packed_references(place: Place) -> None:
    _git("-C", str(place.repo), "pack-refs", "--all")
    assert len(place.open()) == 2
