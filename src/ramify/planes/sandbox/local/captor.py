"""Dumps and restores the processes of a live sandbox with CRIU, from inside its namespaces.

Runs in forks of the supervisor; standard library only. CRIU is a program of the host: it and the
directory of its images come as descriptors, so nothing of the host is mounted here. What it reads
by itself is kept from what the inside can write: no configuration, no plug-ins, no preloading.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ramify.planes.sandbox.local import namespaces as ns
from ramify.planes.sandbox.local.mending import mend
from ramify.planes.sandbox.local.netlock import end_halves, packets_held
from ramify.planes.sandbox.processes import descendants, process_table, send_signal

LOADER = "ld-linux-x86-64.so.2"
"""Name of the program loader beside `criu` in its directory."""

FACTS = "facts.json"
"""File beside the images: what the dump found (see `Facts`)."""

_CRIU_FD, _IMAGES_FD, _WORK_FD, _CACHE_FD, _FIRST_FD = 100, 101, 102, 103, 104
_KERNEL, _KERNEL_CACHE = "kernel", "criu.kdat"
_GHOST_LIMIT = 1 << 30
_NOISE = "RLIMIT_NOFILE for self"  # it does without
_KNOWN_KINDS = ("eventfd", "eventpoll", "signalfd", "timerfd", "inotify", "fanotify", "pidfd")
_LAST_PID = "/proc/sys/kernel/ns_last_pid"
_COMMON = (
    "--unprivileged",
    "--no-default-config",
    *("--tcp-established", "--network-lock", "skip"),
    *("--file-locks", "--manage-cgroups=ignore", "--ghost-limit", str(_GHOST_LIMIT)),
    *("--libdir", f"/proc/self/fd/{_WORK_FD}", "--images-dir", f"/proc/self/fd/{_IMAGES_FD}"),
    *("--work-dir", f"/proc/self/fd/{_WORK_FD}"),
    "-v2",
)
_OURS_IN_DEV = frozenset(
    {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin", "stdout", "stderr"}
    | {"pts", "shm", ".pod"}
)


class Places(NamedTuple):
    """Directories of the host, as descriptors: CRIU, its images, its logs."""

    criu: int
    images: int
    work: int


class Upper(NamedTuple):
    """An overlay of the root: where it is mounted ("" or a name), and its part of the upper."""

    target: str
    inside: str


def forget_low_pids(highest: int) -> None:
    """Have new processes of this namespace numbered above `highest`. Raises OSError."""
    with open(_LAST_PID, "w") as file:
        file.write(str(highest))


def dump(places: Places, pod: int, upper: int, uppers: Sequence[Upper]) -> str:
    """Stop and dump the tree of `pod`, and note what CRIU does not; "" or why it cannot be.

    On success everything below `pod` stands still; otherwise it goes on.
    """
    table = process_table()
    tree = [pod, *descendants([pod])]
    stopped = [pid for pid in tree if table.get(pid, (0, ""))[1] == "T"]
    arguments = ["dump", "-t", str(pod), "--leave-stopped", "--link-remap", "-o", "dump.log"]
    cache = ns.detached_tmpfs()
    _criu(places, cache, ["check"], [])
    try:
        _copy_at(cache, _KERNEL_CACHE, places.images, _KERNEL)
    except FileNotFoundError:
        return "CRIU cannot find out what this kernel can do"
    with packets_held():
        code = _criu(places, cache, arguments, [])
    if code:
        return _reason(places.work, "dump.log", code)
    mend(places.images)
    tree = [pod, *descendants([pod])]
    facts = {
        "pod": pod,
        "highest": max(int(task) for pid in tree for task in os.listdir(f"/proc/{pid}/task")),
        "stopped": stopped,
        "files": [
            (path, inode, _real_inode(upper, uppers, path))
            for path, inode in sorted(_written_files(tree).items())
        ],
        "memory": _save_memory_files(places.images),
    }
    fd = os.open(FACTS, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=places.images)
    with open(fd, "w") as file:
        json.dump(facts, file)
    return ""


def thaw(pod: int, stopped: Sequence[int]) -> None:
    """Let everything that `dump` stopped go on, but for what stood still before."""
    for pid in [*descendants([pod]), pod]:
        if pid not in stopped:
            send_signal(pid, signal.SIGCONT)


def restore(places: Places, pipes: Sequence[tuple[int, int]]) -> str:
    """Bring back what `dump` took; `pipes` are (inode of then, descriptor of now). "" or why not.

    The caller has seen to it that the pids of then are free.
    """
    with open(os.open(FACTS, os.O_RDONLY, dir_fd=places.images)) as file:
        facts: dict[str, Any] = json.load(file)
    _bring_memory_files(places.images, facts["memory"])
    for path, inode, _real in facts["files"]:
        found = os.stat(path).st_ino
        if found != inode:
            return f"{path} has another inode number here ({found}, it was {inode})"
    inherit: list[str] = []
    for number, (inode, _fd) in enumerate(pipes):
        inherit += ["--inherit-fd", f"fd[{_FIRST_FD + number}]:pipe:[{inode}]"]
    arguments = ["restore", "--restore-detached", *inherit, "-o", "restore.log"]
    cache = ns.detached_tmpfs()
    _copy_at(places.images, _KERNEL, cache, _KERNEL_CACHE)
    with packets_held():
        code = _criu(places, cache, arguments, [fd for _inode, fd in pipes])
    if code:
        return _reason(places.work, "restore.log", code)
    end_halves()
    return ""


def _criu(places: Places, cache: int, arguments: Sequence[str], extra: Sequence[int]) -> int:
    """Run CRIU to its end; its exit code (128+n for signal n)."""
    pid = os.fork()
    if pid == 0:
        try:
            _become_criu(places, cache, arguments, extra)
        finally:
            os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _become_criu(
    places: Places, cache: int, arguments: Sequence[str], extra: Sequence[int]
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    errors = os.open("stderr.log", flags, 0o644, dir_fd=places.work)
    null = os.open("/dev/null", os.O_RDWR)
    wanted = {0: null, 1: null, 2: errors, _CRIU_FD: places.criu, _IMAGES_FD: places.images}
    wanted |= {_WORK_FD: places.work, _CACHE_FD: cache} | {
        _FIRST_FD + number: fd for number, fd in enumerate(extra)
    }
    first_free = _FIRST_FD + len(extra)
    high: dict[int, int] = {}
    for target, fd in wanted.items():  # out of the way of the targets first
        high[target] = _dup_above(fd, first_free)
    for target, fd in high.items():
        os.dup2(fd, target, inheritable=True)
    os.closerange(3, _CRIU_FD)
    os.closerange(first_free, first_free + 2 * len(wanted) + 4096)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    here = f"/proc/self/fd/{_CRIU_FD}"
    env = {
        "PATH": "/nonexistent",
        "HOME": "/nonexistent",
        "XDG_RUNTIME_DIR": f"/proc/self/fd/{_CACHE_FD}",
        "GNUTLS_NO_IMPLICIT_INIT": "1",
    }
    command = [LOADER, "--inhibit-cache", "--library-path", here, f"{here}/criu"]
    os.execve(f"{here}/{LOADER}", [*command, arguments[0], *_COMMON, *arguments[1:]], env)


def _dup_above(fd: int, lowest: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


def _reason(work: int, log: str, code: int) -> str:
    """Why CRIU failed, in one line: the process that it names, and its own words."""
    found: list[str] = []
    for name in (log, "stderr.log"):
        try:
            with open(os.open(name, os.O_RDONLY, dir_fd=work), errors="replace") as file:
                lines = file.read().splitlines()
        except OSError:  # it did not get that far
            continue
        errors = [line for line in lines if "Error" in line and _NOISE not in line]
        found = [re.sub(r"^.*?Error \([^)]*\): *", "", line) for line in errors] or lines[-2:]
        if found:
            break
    text = "; ".join(dict.fromkeys(line.strip() for line in found[:4]))
    named = re.search(r"\(pid: (\d+)\)", text) if log == "dump.log" else None
    culprit = _describe(int(named[1])) if named else ""
    return culprit + (text or f"criu ended with code {code}")


def _describe(pid: int) -> str:
    """A process that cannot be dumped, and what it holds that may be why."""
    try:
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended meanwhile
        return f"process {pid}: "
    kinds = sorted({link.partition(":")[2].strip("[]") for link in links if "anon_inode:" in link})
    odd = [kind for kind in kinds if kind not in _KNOWN_KINDS]
    return f"process {pid} ({name})" + (f" holds {', '.join(odd)}: " if odd else ": ")


# What CRIU does not keep


def _written_files(tree: Sequence[int]) -> dict[str, int]:
    """Regular files, by path, that are open for writing or mapped shared: their inode numbers."""
    found: dict[str, int] = {}
    for pid in tree:
        for path, info in _open_for_writing(pid):
            if stat.S_ISREG(info.st_mode) and not path.startswith("/dev/"):
                found[path] = info.st_ino
    return found


def _open_for_writing(pid: int) -> Iterator[tuple[str, os.stat_result]]:
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            flags = int(re.search(r"^flags:\s*(\d+)", file.read(), re.M)[1], 8)  # type: ignore[index]  # always there
        path = os.readlink(f"/proc/{pid}/fd/{fd}")
        if flags & os.O_ACCMODE != os.O_RDONLY and path.startswith("/"):
            info = os.stat(f"/proc/{pid}/fd/{fd}")
            if info.st_nlink:
                yield path, info
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            is_shared = len(fields) == 6 and fields[1][1] == "w" and fields[1][3] == "s"
            if is_shared and fields[5].startswith("/") and not fields[5].endswith(" (deleted)"):
                yield fields[5], os.stat(fields[5])


def _real_inode(upper: int, uppers: Sequence[Upper], path: str) -> int:
    """The inode number that a file has below the overlay; 0: it is in no upper layer."""
    for target, inside in sorted(uppers, key=lambda one: -len(one.target)):
        below = os.path.relpath(path, f"/{target}")
        if below.startswith("../"):
            continue
        try:
            return os.lstat(os.path.join(inside, below), dir_fd=upper).st_ino
        except FileNotFoundError:
            return 0
    return 0


def _save_memory_files(images: int) -> list[dict[str, Any]]:
    """Copy what was put into /dev and /dev/shm beside the images; returns the list of it."""
    kept: list[dict[str, Any]] = []
    queue = [(f"/dev/{name}", name) for name in os.listdir("/dev") if name not in _OURS_IN_DEV]
    queue += [(f"/dev/shm/{name}", name) for name in os.listdir("/dev/shm")]
    while queue:
        path, _name = queue.pop(0)
        info = os.lstat(path)
        entry: dict[str, Any] = {"path": path, "mode": info.st_mode}
        entry |= {"uid": info.st_uid, "gid": info.st_gid, "mtime": info.st_mtime_ns}
        if stat.S_ISDIR(info.st_mode):
            queue += [(f"{path}/{name}", name) for name in os.listdir(path)]
        elif stat.S_ISLNK(info.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISREG(info.st_mode):
            entry["copy"] = f"memory-{len(kept)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with (
                open(os.open(entry["copy"], flags, 0o600, dir_fd=images), "wb") as to,
                open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source,
            ):
                os.truncate(to.fileno(), info.st_size)
                _copy(source.fileno(), to.fileno())
        elif not stat.S_ISFIFO(info.st_mode):
            continue  # a bound socket: CRIU makes it again with its process
        kept.append(entry)
    return kept


def _bring_memory_files(images: int, kept: Sequence[dict[str, Any]]) -> None:
    for entry in kept:
        path, mode = entry["path"], entry["mode"]
        if stat.S_ISDIR(mode):
            os.mkdir(path)
        elif stat.S_ISLNK(mode):
            os.symlink(entry["target"], path)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(path)
        else:
            with (
                open(os.open(entry["copy"], os.O_RDONLY, dir_fd=images), "rb") as source,
                open(path, "xb") as to,
            ):
                os.truncate(to.fileno(), os.fstat(source.fileno()).st_size)
                _copy(source.fileno(), to.fileno())
        os.chown(path, entry["uid"], entry["gid"], follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode))
            os.utime(path, ns=(entry["mtime"], entry["mtime"]))


def _copy_at(source: int, name: str, to: int, new_name: str) -> None:
    """What CRIU knows of the kernel. It finds it out with connections, which are to stand still."""
    with open(os.open(name, os.O_RDONLY, dir_fd=source), "rb") as file:
        data = file.read()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(new_name, flags, 0o600, dir_fd=to), "wb") as file:
        file.write(data)


def _copy(source: int, to: int) -> None:
    """The data of a file, its holes left out."""
    at, size = 0, os.fstat(source).st_size
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole is left
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(source, min(end - at, 1 << 20), at)
            at += os.pwrite(to, data, at)
