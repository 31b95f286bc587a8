"""Linux calls that Python has no name for: namespaces, mounts, privileges. Standard library only.

Every function raises OSError with the call's name and subject when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Sequence

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH = 2

_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 23, 24
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2

# Calls that have one number on every architecture (all newer than 2019).
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_OPENAT2, _NO_LINKS = 437, 0x2 | 0x4
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE = -100, 0x1000, 1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_IDMAP = 1, 2, 4, 0x100000

FIRST_ID = 1_342_177_280
"""Host uid and gid of root inside, where this process is root itself; 65536 follow each."""

ID_COUNT = 65536

KEPT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})
"""What root in an ordinary sandbox may keep: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, AUDIT_WRITE, SETFCAP."""

# mount, umount2, pivot_root, chroot, unshare, setns, the new mount calls, ptrace, process_vm_*,
# keys, bpf, perf, userfaultfd, io_uring, kexec, modules, open_by_handle_at, swap, reboot, clocks,
# syslog, acct, quotactl, name_to_handle_at, kcmp, mount_setattr, pidfd_getfd.
_NEW_DENIED = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442)
_DENIED = {
    "x86_64": (
        *(101, 103, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175),
        *(176, 179, 180, 227, 246, 248, 249, 250, 272, 298, 303, 304, 305, 308, 310, 311, 312, 313),
        *(320, 321, 323, *_NEW_DENIED),
    ),
    "aarch64": (
        *(39, 40, 41, 51, 60, 89, 97, 104, 105, 106, 112, 116, 117, 142, 161, 162, 170, 171),
        *(217, 218, 219, 224, 225, 241, 264, 265, 266, 268, 270, 271, 272, 273, 280, 282, 294),
        *_NEW_DENIED,
    ),
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wrapped), what)


def unshare(flags: int) -> None:
    """Move this process (with NEWPID: its next children) into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind a descriptor."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _check(result, f"mount {kind or source} at {target}")


def unmount(target: str) -> None:
    """Detach a mount at once; it goes when its last user does."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def clone_onto_cwd() -> None:
    """Put a copy of the mounts at and below the working directory over it, and go there.

    Unlike what a new user namespace inherits, the copy can become its root. No path is walked:
    the user of the namespace need not be able to reach the place.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _syscall("open_tree .", _OPEN_TREE, _AT_FDCWD, b".", flags)
    try:
        attach(tree, ".")
        os.fchdir(tree)
    finally:
        os.close(tree)


def pivot_to_cwd() -> None:
    """Make the working directory (a mount) the root, and detach the old root."""
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: unknown machine {platform.machine()}")
    _syscall("pivot_root", number, b".", b".")
    unmount(".")
    os.chdir("/")


def bind_read_only(source: str, target: str) -> None:
    """Show `source` and all mounts below it at `target`, every one of them read-only."""
    mount(source, target, flags=MS_BIND | MS_REC)
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _syscall(
        f"read-only mount of {source}",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(target),
        _AT_RECURSIVE,
        attributes,
        len(attributes),
    )


def open_directory(path: str) -> int:
    """A descriptor (O_PATH) of a directory to whose path no symbolic link belongs."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = struct.pack("QQQ", flags, 0, _NO_LINKS)
    return _syscall(f"open {path}", _OPENAT2, _AT_FDCWD, os.fsencode(path), how, len(how))


def clone_tree(directory: int, *, below: bool) -> int:
    """A bind of a directory (given as a descriptor) that is mounted nowhere yet.

    `below`: with the mounts below it. Without, there may be none that a user namespace must not
    uncover.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0)
    return _syscall("open_tree", _OPEN_TREE, directory, b"", flags)


def restrict(tree: int, *, read_only: bool, user_namespace: int = -1, below: bool = True) -> None:
    """Take set-id bits and devices from the mounts of a tree, and writing if asked.

    `user_namespace`: its owners are shifted as well, as far as their file systems can do it.
    """
    attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if read_only else 0)
    shifted = user_namespace if user_namespace >= 0 else 0
    if user_namespace >= 0:
        attributes |= _MOUNT_ATTR_IDMAP
    _set_attributes("mount_setattr", tree, attributes, shifted, below=below)


def make_read_only(mounted: int) -> None:
    """Let nothing be written through the mount at a descriptor (not those below it)."""
    _set_attributes("read-only mount", mounted, _MOUNT_ATTR_RDONLY, 0, below=False)


def _set_attributes(what: str, fd: int, attributes: int, user_ns: int, *, below: bool) -> None:
    packed = struct.pack("QQQQ", attributes, 0, 0, user_ns)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if below else 0)
    _syscall(what, _MOUNT_SETATTR, fd, b"", flags, packed, len(packed))


def mount_overlay(
    target: str, lowers: Sequence[str], upper: str, work: str, options: Sequence[str], flags: int
) -> None:
    """Mount an overlay. Paths are absolute, and must hold neither comma nor colon.

    mount(2) takes 4095 bytes of options. Where a tall stack needs more, its layers are named from
    the directory that they have in common; a still taller one goes through the newer calls, which
    can take layers one by one since Linux 6.7.
    """
    rest = [f"upperdir={upper}", f"workdir={work}", *options]
    data = ",".join([f"lowerdir={':'.join(lowers)}", *rest])
    if _fits(data):
        mount("overlay", target, "overlay", flags, data)
        return
    place = os.path.commonpath(lowers[:2])
    near = [lower.removeprefix(place + "/") for lower in lowers]
    data = ",".join([f"lowerdir={':'.join(near)}", *rest])
    if _fits(data):
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(place)
            mount("overlay", target, "overlay", flags, data)
        finally:
            os.fchdir(here)
            os.close(here)
        return
    context = _syscall("fsopen", _FSOPEN, b"overlay", 1)
    try:
        pairs = [("lowerdir+", lower) for lower in lowers]
        for key, value in [*pairs, ("upperdir", upper), ("workdir", work)]:
            _fsconfig(context, key, value)
        for option in options:
            _fsconfig(context, option, None)
        _syscall("fsconfig create", _FSCONFIG, context, 6, None, None, 0)
        tree = _syscall("fsmount", _FSMOUNT, context, 1, 2 if flags & MS_NOSUID else 0)
        try:
            attach(tree, target)
        finally:
            os.close(tree)
    finally:
        os.close(context)


def _fits(data: str) -> bool:
    return len(os.fsencode(data)) < 4000


def detached_tmpfs() -> int:
    """A descriptor of an empty tmpfs that is mounted nowhere and goes with its last descriptor."""
    context = _syscall("fsopen tmpfs", _FSOPEN, b"tmpfs", 1)
    try:
        _syscall("fsconfig create", _FSCONFIG, context, 6, None, None, 0)
        return _syscall("fsmount", _FSMOUNT, context, 1, 0)
    finally:
        os.close(context)


def _fsconfig(context: int, key: str, value: str | None) -> None:
    command = 0 if value is None else 1
    data = None if value is None else os.fsencode(value)
    _syscall(f"overlay option {key}", _FSCONFIG, context, command, key.encode(), data, 0)


def attach(tree: int, target: str) -> None:
    """Mount a tree of mounts that is mounted nowhere yet. No link is followed at `target`."""
    _syscall(
        f"attach {target}",
        _MOVE_MOUNT,
        tree,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


def mount_id_mapped(source: str, target: str, user_namespace: int) -> None:
    """Bind `source`, without the mounts below it, at `target`: owners shifted, and read-only.

    Read-only is a safeguard of ours: whatever goes wrong with `target`, `source` stays whole.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _syscall(f"open_tree {source}", _OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    try:
        attributes = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY
        what = f"id-mapped mount of {source}"
        _set_attributes(what, tree, attributes, user_namespace, below=False)
        attach(tree, target)
    finally:
        os.close(tree)


def loopback_up() -> None:
    """Bring up `lo` in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(any_socket, 0x8913, request))[1]
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))


def _prctl(what: str, option: int, *arguments: object) -> int:
    padded = [*arguments, 0, 0, 0, 0][:4]
    return _check(_libc.prctl(option, *padded), what)


def not_dumpable() -> None:
    """Keep others of the same user from tracing or reading this process (until exec)."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def limit_capabilities(kept: frozenset[int]) -> None:
    """Bound what programs started from now on can hold; this process keeps its own."""
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1 and number not in kept:
            _prctl(f"drop capability {number}", _PR_CAPBSET_DROP, number)


def _set_inheritable(both: tuple[int, int] | None) -> None:
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    words = list(struct.unpack("6I", data.raw[:24]))
    words[2], words[5] = both if both is not None else (words[1], words[4])
    data.raw = struct.pack("6I", *words)
    _check(_libc.capset(header, data), "capset")


def pass_capabilities_on() -> None:
    """Let programs that root starts from here keep this process's capabilities, bounded or not.

    Before `limit_capabilities`. Whoever starts something that may not calls `clear_inheritable`.
    """
    _set_inheritable(None)


def clear_inheritable() -> None:
    """Let programs started from here have only what the bounding set allows."""
    _set_inheritable((0, 0))


def no_new_privileges() -> None:
    """Make set-id bits and file capabilities mean nothing from now on."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def deny_dangerous_calls() -> bool:
    """Install the deny list of system calls. False on a machine we have no numbers for.

    Needs `no_new_privileges` first. A denied call fails with EPERM; a foreign system call
    convention is denied whole; clone3 answers ENOSYS, so that the flags of clone can be checked.
    """
    machine = platform.machine()
    if machine not in _DENIED:
        return False
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026

    def op(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [op(load, 0, 0, 4), op(equal, 1, 0, _AUDIT_ARCH[machine]), op(give, 0, 0, eperm)]
    program.append(op(load, 0, 0, 0))
    if machine == "x86_64":  # the x32 convention reuses the numbers with this bit
        program += [op(at_least, 0, 1, 0x40000000), op(give, 0, 0, eperm)]
    for number in _DENIED[machine]:
        program += [op(equal, 0, 1, number), op(give, 0, 0, eperm)]
    program += [op(equal, 0, 1, _CLONE3), op(give, 0, 0, enosys)]
    new_namespaces = 0x7E020000
    program += [op(equal, 0, 3, _CLONE[machine]), op(load, 0, 0, 16)]
    program += [op(any_bit, 0, 1, new_namespaces), op(give, 0, 0, eperm), op(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)
    return True


def make_user_namespace() -> int:
    """A user namespace of the fixed range, as a descriptor. Needs root. Raises OSError."""
    ready_r, ready_w = os.pipe()
    hold_r, hold_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(hold_w)
        try:
            unshare(CLONE_NEWUSER)
            os.write(ready_w, b"1")
            os.read(hold_r, 1)
        finally:
            os._exit(0)
    os.close(ready_w)
    os.close(hold_r)
    try:
        if os.read(ready_r, 1) != b"1":
            raise OSError("user namespaces are forbidden here")
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(f"0 {FIRST_ID} {ID_COUNT}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_r)
        os.close(hold_w)
        os.waitpid(pid, 0)
