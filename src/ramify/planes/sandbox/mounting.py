"""The caller's mounts, before any sandbox is made: what is refused, and where changes will go."""

from __future__ import annotations

import os
import posixpath
import stat
from contextlib import suppress
from pathlib import Path

from ramify.contracts.errors import ConfigError, SandboxError, UnsupportedError
from ramify.contracts.sandbox import Mount, SandboxSpec
from ramify.planes.sandbox.descent import remove

UPPER, WORK = "upper", "work"
"""What there is in the `scratch` of a copy-on-write mount."""

_FIELD = "mounts"
_RESERVED = ("/proc", "/sys", "/dev")
_LAST_ID = 65535


def check_mounts(spec: SandboxSpec, offered: frozenset[str], provider: str) -> None:
    """Refuse mounts that cannot be had. Looks at the directories; makes nothing.

    Raises: UnsupportedError (a mode that `provider` does not offer, or a live sandbox),
    ConfigError (a bad source, target or scratch).
    """
    if not spec.mounts:
        return
    wanted = {mount.mode for mount in spec.mounts}
    if missing := sorted(wanted - offered):
        raise UnsupportedError(
            f"the {provider} sandbox has no {' or '.join(missing)} mounts here; use the local or"
            " the docker sandbox of this machine"
        )
    if spec.live:
        raise UnsupportedError("a live sandbox takes no mounts: a checkpoint could not hold them")
    targets = [mount.target for mount in spec.mounts]
    for mount in spec.mounts:
        _check_directory(mount.source, "source")
        _check_target(mount.target)
        if targets.count(mount.target) > 1:
            raise _wrong(f"the target {mount.target} is given twice")
        if mount.mode == "cow":
            _check_scratch(mount, spec.mounts)
        elif mount.scratch is not None:
            raise _wrong(f"a {mount.mode} mount has no scratch ({mount.target})")


def make_scratch(mounts: tuple[Mount, ...], shift: int | None) -> None:
    """Make the directories that copy-on-write mounts write to.

    The upper one has the owner and mode of the source, for these are what the inside sees at the
    target. `shift`: root inside is this user, and all others follow it. Raises: OSError,
    ConfigError (an owner that cannot be inside).
    """
    for mount in mounts:
        if mount.scratch is None:
            continue
        seen = os.stat(mount.source)
        if shift is not None and max(seen.st_uid, seen.st_gid) > _LAST_ID:
            raise _wrong(
                f"the owner {seen.st_uid}:{seen.st_gid} of {mount.source} is above {_LAST_ID}, and"
                " there is none like that inside: give it to another user, or use the docker"
                " sandbox"
            )
        for name in (UPPER, WORK):
            place = os.path.join(mount.scratch, name)
            os.mkdir(place)
            if shift is not None:
                os.chown(place, shift + seen.st_uid, shift + seen.st_gid)
            elif os.geteuid() == 0:
                os.chown(place, seen.st_uid, seen.st_gid)
            os.chmod(place, stat.S_IMODE(seen.st_mode))


def empty_scratch(mounts: tuple[Mount, ...], *, upper: bool) -> None:
    """Remove what overlayfs needs only while it is mounted; with `upper` the changes as well.

    Blocking. What is gone already is fine. Raises: SandboxError.
    """
    for mount in mounts:
        if mount.scratch is None:
            continue
        try:
            fd = os.open(mount.scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # its owner was faster
            continue
        try:
            with suppress(OSError):  # of a daemon's it is empty, and root's; else it goes below
                os.rmdir(f"{WORK}/work", dir_fd=fd)
            for name in (WORK, UPPER) if upper else (WORK,):
                remove(fd, os.fsencode(name))
        except OSError as error:
            raise SandboxError(f"cannot clean up {mount.scratch}: {error}") from error
        finally:
            os.close(fd)


def _check_directory(path: str, what: str) -> None:
    if not os.path.isabs(path) or "\0" in path:
        raise _wrong(f"the {what} {path!r} is not an absolute path")
    if not os.path.isdir(path):
        raise _wrong(f"the {what} {path} is not a directory")
    if (real := os.path.realpath(path)) != path:
        raise _wrong(f"the {what} {path} is not its own real path; give {real}")


def _check_target(path: str) -> None:
    if not posixpath.isabs(path) or posixpath.normpath(path) != path or "\0" in path:
        raise _wrong(f"the target {path!r} is not an absolute path without . and ..")
    if path.startswith("//") or path == "/":
        raise _wrong(f"nothing can be mounted at {path}")
    if any(path == place or path.startswith(f"{place}/") for place in _RESERVED):
        raise _wrong(f"nothing can be mounted at {path}: that is the sandbox's own")


def _check_scratch(mount: Mount, mounts: tuple[Mount, ...]) -> None:
    if mount.scratch is None:
        raise _wrong(f"the copy-on-write mount at {mount.target} needs a scratch directory")
    _check_directory(mount.scratch, "scratch")
    if os.listdir(mount.scratch):
        raise _wrong(f"the scratch {mount.scratch} is not empty; give a new directory")
    for other in mounts:
        places = [other.source] if other.mode != "ro" else []
        places += [other.scratch] if other.scratch and other is not mount else []
        for place in places:
            if Path(mount.scratch).is_relative_to(place):
                raise _wrong(f"the scratch {mount.scratch} lies in {place}; give one elsewhere")
    if on_overlay(Path(mount.scratch)):
        raise _wrong(
            f"the scratch {mount.scratch} lies on an overlay file system (the root of a container?)"
            " where overlayfs cannot keep changes: give a directory on a volume or a tmpfs of it,"
            " or run outside of the container"
        )


def on_overlay(path: Path) -> bool:
    """Whether a directory is, or would be made, on overlayfs, where another cannot keep changes."""
    while not os.path.exists(path):  # False also where it may not be looked for
        path = path.parent
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux: whoever mounts will tell
        return False
    found = (line.split() for line in lines)
    kinds = (fields[fields.index("-") + 1] for fields in found if fields[2] == wanted)
    return next(kinds, "") == "overlay"


def _wrong(message: str) -> ConfigError:
    return ConfigError(message, field=_FIELD)
