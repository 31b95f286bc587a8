"""Lays the caller's mounts over the root of a sandbox. Standard library only; the launcher's part.

Each is made in the launcher, where directories of the host are within reach, as a tree of mounts
that is mounted nowhere; the first process of the sandbox puts it in its place once the host is out
of reach, so that links of an image lead nowhere else.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from ramify.planes.sandbox.local import namespaces as ns

_RESERVED = ("/proc", "/sys", "/dev")


class Given(NamedTuple):
    """A mount as it was asked for; see `contracts.sandbox.Mount`."""

    source: str
    target: str
    mode: str
    scratch: str


def take(given: Given, place: str, mode: str, user_namespace: int) -> int:
    """The tree of a mount, as a descriptor.

    Args:
        given: the mount.
        place: where a directory can be made for what is mounted only meanwhile.
        mode: of the sandbox.
        user_namespace: shift owners to it (-1: leave them).

    Raises: OSError, with what to do about it.
    """
    source = ns.open_directory(given.source)
    try:
        if given.mode != "cow":
            return _bound(given, source, place, user_namespace)
        return _copied_on_write(given, source, place, mode, user_namespace)
    finally:
        os.close(source)


def _bound(given: Given, source: int, place: str, user_namespace: int) -> int:
    # Not with our own mounts below it, where it holds the directory of the sandboxes.
    below = not place.startswith(f"{given.source.rstrip('/')}/")
    tree = ns.clone_tree(source, below=below)
    read_only = given.mode == "ro"
    try:
        ns.restrict(tree, read_only=read_only, user_namespace=user_namespace)
    except OSError as error:
        raise _unshifted(given, error, user_namespace) from error
    return tree


def _copied_on_write(given: Given, source: int, place: str, mode: str, user_namespace: int) -> int:
    """An overlay. Its layers are bound below `place`: their own paths may hold commas or colons."""
    os.mkdir(place)
    lower, scratch, merged = (f"{place}/{name}" for name in ("lower", "scratch", "merged"))
    _bind(given, source, lower, read_only=True, user_namespace=user_namespace)
    opened = ns.open_directory(given.scratch)
    _bind(given, opened, scratch, read_only=False, user_namespace=-1)
    os.close(opened)
    os.mkdir(merged)
    # Directories that were moved, and files whose mode was changed, lie in the upper directory in
    # full: whoever reads it need not know these features.
    options = ["volatile", "redirect_dir=nofollow", "metacopy=off"]
    if mode == "rootless":
        options.append("userxattr")
    flags = ns.MS_NODEV | ns.MS_NOSUID
    try:
        ns.mount_overlay(merged, [lower], f"{scratch}/upper", f"{scratch}/work", options, flags)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{given.source} cannot be mounted copy-on-write with its changes in {given.scratch}:"
            f" {error.strerror}; these must lie on a file system of the host such as ext4, xfs,"
            " btrfs or tmpfs, not on an overlay, a network or a shared one",
        ) from error
    at = os.open(merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = ns.clone_tree(at, below=False)
    os.close(at)
    for mounted in (merged, scratch, lower):
        ns.unmount(mounted)
    return tree


def _bind(given: Given, fd: int, at: str, *, read_only: bool, user_namespace: int) -> None:
    os.mkdir(at)
    tree = ns.clone_tree(fd, below=False)
    try:
        ns.restrict(tree, read_only=read_only, user_namespace=user_namespace, below=False)
        ns.attach(tree, at)
    except OSError as error:
        raise _unshifted(given, error, user_namespace) from error
    finally:
        os.close(tree)


def _unshifted(given: Given, error: OSError, user_namespace: int) -> OSError:
    if user_namespace < 0:
        return OSError(error.errno, f"{given.source} cannot be mounted: {error.strerror}")
    return OSError(
        error.errno,
        f"{given.source} cannot be mounted with the owners of the sandbox: {error.strerror};"
        " its file system (and those mounted below it) must know id-mapped mounts, as ext4, xfs,"
        " btrfs and tmpfs do",
    )


def lay(tree: int, target: str) -> None:
    """Put a tree at `target` of this process's root; missing directories are made.

    Raises: OSError.
    """
    at = os.path.realpath(target)
    if at == "/" or any(at == place or at.startswith(f"{place}/") for place in _RESERVED):
        raise OSError(f"nothing can be mounted at {target}: that is {at} inside")
    try:
        os.makedirs(at, exist_ok=True)
    except OSError as error:
        reason = f"there is no directory {target} inside, and none can be made: {error.strerror}"
        raise OSError(error.errno, reason) from error
    ns.attach(tree, at)


def give_back(scratch: str) -> None:
    """Let what was written belong to root of this user namespace, who the engine is outside.

    What lies too deep for a path to name stays as it is. Raises: OSError.
    """
    pending = [scratch]
    while pending:
        place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            continue
        for entry in entries:
            if entry.stat(follow_symlinks=False).st_uid != 0:
                os.chown(entry.path, 0, 0, follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
