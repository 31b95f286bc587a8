"""Harbor datasets by id: a directory of tasks, or an entry of a registry file.

A registry is a JSON list (or a table with a list `datasets`) of

    {"name": …, "version": …, "tasks": [{"name": …, "git_url": …, "git_commit_id": …, "path": …}]}

Nothing is downloaded: a task's repository must already be checked out on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import msgspec

from ramify.contracts.config import ramify_home
from ramify.contracts.errors import ConfigError, UnknownNameError
from ramify.contracts.task import ExecutionHints, Task, Taskset
from ramify.tasks.taskset import DirectoryTaskset, load_taskset

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


class _Entry(msgspec.Struct, frozen=True):
    """A task of a registry; without `git_url` its path is relative to the registry file."""

    path: str
    name: str | None = None
    git_url: str | None = None
    git_commit_id: str | None = None


class _Dataset(msgspec.Struct, frozen=True):
    """A dataset of a registry."""

    name: str
    tasks: list[_Entry]
    version: str | None = None


class HarborTaskset:
    """A taskset by its id: `HarborTaskset(taskset_id="my-taskset")`.

    Tasks are read when they are reached. Their item ids are their names.

    Args:
        taskset_id: the dataset's name, or `name@version`.
        path: a directory of tasks; the taskset gets `taskset_id` as its id.
        registry: a registry file that names the dataset.
        checkouts: where repositories that a registry names are checked out, each as `<name>` or
            `<owner>/<name>`.

    Without `path` and `registry` the dataset is looked up below the directory where Ramify keeps
    its data: `datasets/<taskset_id>`, else `registry.json`, with checkouts in `checkouts/`.

    Raises:
        UnknownNameError: the registry has no such dataset, or several versions of it.
        ConfigError: both `path` and `registry`, nothing found, a registry that is wrong, or a
            repository that is not checked out here at the commit that is asked for.
    """

    def __init__(
        self,
        taskset_id: str,
        path: Path | None = None,
        registry: Path | None = None,
        checkouts: Path | None = None,
    ) -> None:
        home = ramify_home()
        if path is not None and registry is not None:
            raise ConfigError("give a path or a registry, not both", field="registry")
        if path is None and registry is None:
            known = home / "datasets" / taskset_id
            path, registry = (known, None) if known.is_dir() else (None, home / "registry.json")
        if path is not None:
            self._tasks: Taskset = load_taskset(path, taskset_id)
            return
        assert registry is not None
        entries = _dataset(registry, taskset_id).tasks
        where = checkouts or home / "checkouts"
        places = dict(_place(registry, entry, where) for entry in entries)
        if len(places) != len(entries):
            raise ConfigError("names a task twice", str(registry), taskset_id)
        self._tasks = DirectoryTaskset(taskset_id, places)

    @property
    def taskset_id(self) -> str:
        """The first part of every task id in it."""
        return self._tasks.taskset_id

    @property
    def default_grading_spec(self) -> Mapping[str, Any] | None:
        """None: each task directory says how it is graded."""
        return self._tasks.default_grading_spec

    @property
    def hints(self) -> ExecutionHints:
        """Execution hints."""
        return self._tasks.hints

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def get_task(self, task_id: str) -> Task:
        """The task with this canonical id, or item id. Raises as `DirectoryTaskset.get_task`."""
        return self._tasks.get_task(task_id)


def _dataset(registry: Path, taskset_id: str) -> _Dataset:
    name, _, version = taskset_id.partition("@")
    known = _read(registry)
    found = [d for d in known if d.name == name and (not version or d.version == version)]
    if len(found) != 1:
        raise UnknownNameError("dataset", taskset_id, [_called(dataset) for dataset in known])
    return found[0]


def _called(dataset: _Dataset) -> str:
    return dataset.name if dataset.version is None else f"{dataset.name}@{dataset.version}"


def _read(registry: Path) -> list[_Dataset]:
    try:
        raw: object = msgspec.json.decode(registry.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}; give a directory of tasks (-T path=...) or a "
            "registry file (-T registry=...)",
            file=str(registry),
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not JSON: {error}", file=str(registry)) from None
    if isinstance(raw, dict):
        raw = cast("dict[str, object]", raw).get("datasets")
    try:
        return msgspec.convert(raw, list[_Dataset])
    except msgspec.ValidationError as error:
        raise ConfigError(f"is not a registry: {error}", file=str(registry)) from None


def _place(registry: Path, entry: _Entry, checkouts: Path) -> tuple[str, Path]:
    """Name and directory of one task."""
    if entry.git_url is None:
        root = registry.resolve().parent
    else:
        root = _checkout(registry, entry.git_url, entry.git_commit_id, checkouts)
    place = (root / entry.path).resolve()
    if not place.is_relative_to(root):
        raise ConfigError(f"{entry.path!r} leaves its repository", str(registry), "path")
    if not place.is_dir():
        raise ConfigError(f"there is no directory {place}", str(registry), "path")
    return entry.name or place.name, place


def _checkout(registry: Path, url: str, commit: str | None, checkouts: Path) -> Path:
    """The local checkout of a repository, at the commit that is asked for."""
    parsed = urlparse(url)
    if parsed.scheme == "file" or url.startswith("/"):
        candidates = [Path(parsed.path)]
    else:
        # `https://host/owner/name.git` and `git@host:owner/name.git` alike.
        parts = re.split(r"[/:]", url.removesuffix("/").removesuffix(".git"))[-2:]
        safe = [part for part in parts if re.fullmatch(r"[\w.-]+", part) and part.strip(".")]
        candidates = [checkouts.joinpath(*safe), checkouts / safe[-1]] if safe else []
    found = next((place.resolve() for place in candidates if (place / ".git").exists()), None)
    if found is None:
        target = candidates[0] if candidates else checkouts
        raise ConfigError(
            f"{url} is not checked out on this machine; run `git clone {url} {target}`",
            str(registry),
            "git_url",
        )
    if commit is not None and _COMMIT.fullmatch(commit) and not _head(found).startswith(commit):
        raise ConfigError(
            f"{found} is not at commit {commit}; run `git -C {found} checkout {commit}`",
            str(registry),
            "git_commit_id",
        )
    return found


def _head(checkout: Path) -> str:
    """The commit that a checkout stands at; empty where it cannot be told."""
    git = checkout / ".git"
    try:
        if git.is_file():  # a worktree or a submodule
            git = (checkout / git.read_text().strip().removeprefix("gitdir: ")).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        shared = (git / common.read_text().strip()).resolve() if common.is_file() else git
        if (shared / name).is_file():
            return (shared / name).read_text().strip()
        for line in (shared / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.partition(" ")[0]
    except (OSError, UnicodeDecodeError):
        return ""  # The caller then says that it is not at the commit.
    return ""
