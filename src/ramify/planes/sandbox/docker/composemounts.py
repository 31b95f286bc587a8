"""What a Compose service mounts: volumes of its own project, and files of the task.

Nothing of the host is ever written: a directory that is not mounted read-only is copied into a
volume of the project (copies.py), and a single file is always read-only.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ramify.planes.sandbox.docker.composenode import Node

PLATFORM = "/.ramify/platform"
"""Stands for a directory in which another platform shares logs with its host: not mounted here."""

_LONG = frozenset({"type", "source", "target", "read_only", "consistency", "tmpfs", "bind",
                   "volume"})  # fmt: skip
_MODES = frozenset({"ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy"})


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: `source` is a host path, the name of a volume, or empty (a fresh volume)."""

    kind: Literal["bind", "volume"]
    source: str
    target: str
    read_only: bool = False


def volume_of(node: Node, folder: Path, volumes: frozenset[str]) -> Mount | None:
    """An entry of `volumes`; None for a directory of another platform's host.

    Raises: ConfigError, UnsupportedError (a path outside `folder`).
    """
    if node.is_map:
        kind, source, target, read_only = _long(node)
    else:
        source, target, read_only = _short(node)
        kind = "bind" if source[:1] in ("/", ".", "~") else "volume"
    if source.startswith(PLATFORM):
        return None
    target = posixpath.normpath(target)
    if not target.startswith("/") or target == "/" or (target + "/").startswith("/.ramify/"):
        raise node.error(f"{target!r} is no place for a mount; it must be an absolute path")
    if kind == "volume":
        if source and source not in volumes:
            raise node.error(f"there is no volume {source!r}; declare it under `volumes`")
        return Mount("volume", source, target, read_only)
    place = _below(node, folder, source)
    if not place.exists() and not node.is_map:
        # Docker would make an empty directory on the host; here it is one of the container alone.
        return Mount("volume", "", target, read_only)
    if not place.exists():
        raise node.error(f"there is no {place}")
    return Mount("bind", str(place), target, read_only or not place.is_dir())


def tmpfs_of(node: Node) -> dict[str, str]:
    """Entries of `tmpfs`: path → options. Raises: ConfigError."""
    found: dict[str, str] = {}
    for entry in node.texts():
        path, _, options = entry.partition(":")
        if not path.startswith("/") or posixpath.normpath(path) == "/":
            raise node.error(f"{path!r} is no absolute path")
        found[posixpath.normpath(path)] = options
    return found


def _below(node: Node, folder: Path, source: str) -> Path:
    place = (folder / source).resolve()
    if source.startswith("~") or not place.is_relative_to(folder):
        raise node.refusal(f"{source} is a path of the host outside {folder}")
    return place


def _long(node: Node) -> tuple[str, str, str, bool]:
    node.known(_LONG)
    at = node.entries()
    if "type" not in at or "target" not in at:
        raise node.error("needs `type` and `target`")
    kind = at["type"].text()
    if kind not in ("bind", "volume"):
        raise at["type"].refusal(f"mounts of type {kind!r} are not supported here")
    source = at["source"].text() if "source" in at else ""
    if kind == "bind" and not source:
        raise node.error("a bind mount needs a `source`")
    return kind, source, at["target"].text(), "read_only" in at and at["read_only"].flag()


def _short(node: Node) -> tuple[str, str, bool]:
    source, colon, rest = node.text().partition(":")
    if not colon:
        return "", source, False
    target, _, mode = rest.partition(":")
    words = set(mode.split(",")) - {""}
    if unknown := words - _MODES:
        raise node.refusal(f"the option {', '.join(sorted(unknown))} is not supported")
    return source, target, "ro" in words
