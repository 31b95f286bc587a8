"""Which mode of the local sandbox works on this machine, found out without leaving a trace."""

from __future__ import annotations

import json
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from ramify.planes.sandbox.local import namespaces as ns

Mode = Literal["userns", "rootless", "plain", "none"]


class Machine(NamedTuple):
    """What was found: the mode, the subordinate ids for newuidmap, and why nothing better."""

    mode: Mode
    user_map: tuple[int, int] | None
    detail: str
    remedy: str


def find_mode() -> Machine:
    """Choose the strongest mode that works. Forks short-lived processes; makes nothing else.

    Call it only in a process without threads: `process.probe` starts one.
    """
    if sys.platform != "linux":
        remedy = "use the docker sandbox (--sandbox docker)"
        return Machine("none", None, f"{platform.system()} has no Linux namespaces", remedy)
    missing = _missing()
    if missing is not None:
        return missing
    if os.geteuid() == 0:
        if not _works(_plain):
            return Machine(
                "none",
                None,
                "root may not make mount namespaces here (a container without SYS_ADMIN)",
                "run the container with --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
                " --security-opt apparmor=unconfined, or use the docker sandbox",
            )
        if _works(_userns):
            return Machine("userns", None, "root with a user namespace and id-mapped layers", "")
        detail = "root without a user namespace: root inside has fewer capabilities, not fewer ids"
        return Machine("plain", None, detail, _userns_remedy())
    if not _works(_rootless):
        return Machine("none", None, "user namespaces are forbidden here", _userns_remedy())
    subordinate = subordinate_ids()
    if subordinate is None:
        return Machine(
            "rootless",
            None,
            "rootless with a map of one id: only root exists inside",
            "install newuidmap (package uidmap) and give this user a line in /etc/subuid and"
            " /etc/subgid for other users inside",
        )
    return Machine("rootless", subordinate, "rootless with subordinate ids", "")


def _missing() -> Machine | None:
    with open("/proc/filesystems") as file:
        known = file.read().split()
    if "overlay" in known:
        return None
    modules = Path("/lib/modules") / platform.release()
    if os.geteuid() == 0 and modules.is_dir() and any(modules.rglob("overlay.ko*")):
        return None  # the first mount loads it
    return Machine("none", None, "the kernel has no overlay file system", "run: modprobe overlay")


def _userns_remedy() -> str:
    """Names the setting of this kernel that forbids user namespaces."""
    for setting, forbidding, wanted in (
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
    ):
        try:
            value = (Path("/proc/sys") / setting).read_text().strip()
        except OSError:  # this kernel does not know the setting
            continue
        if value == forbidding:
            return f"run as root: sysctl -w {wanted}"
    return (
        "a seccomp profile or security module forbids them: in a container add"
        " --security-opt seccomp=unconfined, or use the docker sandbox"
    )


def subordinate_ids() -> tuple[int, int] | None:
    """This user's (first id, count) that newuidmap and newgidmap grant alike."""
    if shutil.which("newuidmap") is None or shutil.which("newgidmap") is None:
        return None
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a user without an entry
        name = str(uid)
    granted = [_ranges(file, {name, str(uid)}) for file in ("/etc/subuid", "/etc/subgid")]
    common = [one for one in granted[0] if one in granted[1] and one[1] >= 1000]
    return (common[0][0], min(common[0][1], 65535)) if common else None


def _ranges(file: str, names: set[str]) -> list[tuple[int, int]]:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:  # no such file: nothing is granted
        return []
    rows = [line.split(":") for line in lines]
    return [(int(r[1]), int(r[2])) for r in rows if len(r) == 3 and r[0] in names]


def _plain() -> None:
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWUTS)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)


def _rootless() -> None:
    uid, gid = os.getuid(), os.getgid()
    ns.unshare(ns.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        (Path("/proc/self") / name).write_text(text)
    _plain()


def _userns() -> None:
    """Whether an id-mapped clone of the root file system can be made here."""
    user_ns = ns.make_user_namespace()
    ns.unshare(ns.CLONE_NEWNS)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    ns.mount_id_mapped("/", "/proc", user_ns)


def _works(attempt: Callable[[], None]) -> bool:
    """Run an attempt in a process of its own, so that nothing of it stays."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Entry point of the probing process: one line of JSON."""
    sys.stdout.write(json.dumps(find_mode()))
