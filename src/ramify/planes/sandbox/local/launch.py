"""Builds the world of one sandbox, from a fork of the spawner to its PID 1. Standard library only.

```
spawner ── launcher (leaves the host's namespaces, mounts the overlay) ── PID 1 (the supervisor)
```
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from contextlib import suppress
from typing import NamedTuple, NoReturn

from ramify.planes.sandbox.local import cgroups
from ramify.planes.sandbox.local import namespaces as ns
from ramify.planes.sandbox.local.laying import Given, lay, take
from ramify.planes.sandbox.local.masking import show_read_only
from ramify.planes.sandbox.local.pod import PROGRAM_PATH
from ramify.planes.sandbox.local.pod_elf import PROGRAM
from ramify.planes.sandbox.local.supervisor import Duties, supervise
from ramify.planes.sandbox.local.wire import Message
from ramify.planes.sandbox.processes import die_with_parent

_ISOLATE = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_READ_ONLY_PROC = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_HIDDEN_PROC = ("kcore", "keys", "latency_stats", "timer_list", "sched_debug", "acpi", "scsi")
SYSTEM_FILES = {
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}
"""Files under /etc that every sandbox has; there is no resolver inside: names are the proxy's."""


class Overlay(NamedTuple):
    """One overlay of a root: where in it ("" or a name below), its layers (topmost first)."""

    target: str
    lowers: list[str]
    upper: str
    work: str


class World(NamedTuple):
    """What one sandbox is made of.

    `mode` is `userns`, `rootless`, `plain` or `bare`. `live` says that its processes can be
    captured: it has a pod root, and its supervisor may start CRIU.

    `overlays` are mounted in order. `binds` are host directories seen read-only at the same path.
    `mounts` are the caller's, laid over all that; with `read_only` the rest cannot be written to.
    `user_map` (first id, count) is the subordinate range for `newuidmap`, where there is one.
    """

    mode: str
    root: str
    overlays: list[Overlay]
    binds: list[str]
    cgroups: list[str]
    workdir: str
    lockdown: bool
    live: bool
    process_limit: int | None
    file_limit: int | None
    user_map: tuple[int, int] | None
    mounts: list[Given]
    read_only: bool

    @staticmethod
    def parse(message: Message, places: list[str]) -> World:
        """From a request of the engine."""
        values = {name: message[name] for name in World._fields if name != "cgroups"}
        values["overlays"] = [Overlay(*overlay) for overlay in message["overlays"]]
        values["mounts"] = [Given(*given) for given in message["mounts"]]
        return World(cgroups=places, **values)


def launch(
    world: World, control: socket.socket, life: int, report: int, user_namespace: int
) -> NoReturn:
    """In a fork of the spawner: build everything, fork PID 1, report its pid, end."""
    try:
        if world.mode == "bare":
            os.write(report, b"%d\n" % os.getpid())
            cgroups.enter(world.cgroups)
            os.setsid()
            os.close(report)
            duties = Duties(False, False, world.process_limit, world.file_limit)
            supervise(control, life, duties)
        die_with_parent(9)
        cgroups.enter(world.cgroups)
        trees = _leave_host(world, user_namespace)
        pid = os.fork()
        if pid == 0:
            _first_process(world, trees, control, life, report)
        os.write(report, b"%d\n" % pid)
    except BaseException as error:  # whatever it was, the engine is told, and nothing goes on
        os.write(report, f"!{error}".encode()[:4000])
    finally:
        os._exit(0)


def _leave_host(world: World, user_namespace: int) -> list[int]:
    """Into namespaces of its own; returns the trees of the caller's mounts, not yet laid."""
    if world.mode == "rootless":
        map_users(world.user_map)
        ns.unshare(_ISOLATE)
        ns.mount("none", "/", flags=ns.MS_REC | ns.MS_SLAVE)
    elif world.mode == "userns":
        ns.unshare(ns.CLONE_NEWNS)
    else:
        ns.unshare(_ISOLATE)
    options = ["volatile", *(["userxattr"] if world.mode == "rootless" else [])]
    flags = ns.MS_NODEV | (ns.MS_NOSUID if world.lockdown else 0)
    for one in world.overlays:
        target = os.path.join(world.root, one.target) if one.target else world.root
        try:
            ns.mount_overlay(target, one.lowers, one.upper, one.work, options, flags)
        except OSError as error:
            # Mounts of the host below it that a user namespace may not uncover (a GPU's programs
            # in a container): it cannot be changed.
            if error.errno != errno.EINVAL or world.mode != "rootless" or not one.target:
                raise
            show_read_only(one.lowers[-1], one.lowers[-2], target)
    os.chdir(world.root)
    for place in world.binds:  # now: root of a user namespace may be unable to reach them
        _bind_read_only(place, world.mode == "userns")
    shift = user_namespace if world.mode == "userns" else -1
    own = os.path.dirname(world.root)
    trees = [take(m, f"{own}/mount-{n}", world.mode, shift) for n, m in enumerate(world.mounts)]
    if world.mode == "userns":
        ns.setns(user_namespace, ns.CLONE_NEWUSER)
        os.setgroups([])
        os.setgid(0)
        os.setuid(0)
        ns.unshare(_ISOLATE)
    return trees


def map_users(subordinate: tuple[int, int] | None) -> None:
    """Become root of a new user namespace: of a range with newuidmap, else of this one user."""
    uid, gid = os.getuid(), os.getgid()
    if subordinate is None:
        ns.unshare(ns.CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        return
    go_r, go_w = os.pipe()
    done_r, done_w = os.pipe()
    target, (first, count) = os.getpid(), subordinate
    if os.fork() == 0:
        os.close(go_w)
        os.read(go_r, 1)
        maps = [str(target), "0", "", "1", "1", str(first), str(count)]
        ok = _call("newuidmap", maps, uid) and _call("newgidmap", maps, gid)
        os.write(done_w, b"1" if ok else b"0")
        os._exit(0)
    ns.unshare(ns.CLONE_NEWUSER)
    os.write(go_w, b"1")
    if os.read(done_r, 1) != b"1":
        raise OSError("newuidmap or newgidmap refused the ranges of /etc/subuid and /etc/subgid")
    os.wait()
    os.setgid(0)
    os.setuid(0)


def _call(tool: str, maps: list[str], own: int) -> bool:
    arguments = [tool, maps[0], maps[1], str(own), *maps[3:]]
    pid = os.posix_spawnp(tool, arguments, os.environ)
    return os.waitpid(pid, 0)[1] == 0


def _first_process(
    world: World, trees: list[int], control: socket.socket, life: int, report: int
) -> NoReturn:
    try:
        os.setsid()
        _build_root(world)
        _finish_root(world, trees)
        _give_up_powers(world)
        os.close(report)
    except BaseException as error:  # goes to the spawner as the launcher's own failures do
        os.write(report, f"!{error}".encode()[:4000])
        os._exit(1)
    duties = Duties(True, world.live, world.process_limit, world.file_limit)
    supervise(control, life, duties)


def _build_root(world: World) -> None:
    ns.clone_onto_cwd()
    for name in ("proc", "dev", "tmp", "etc"):
        _directory(name, 0o1777 if name == "tmp" else 0o755)
    ns.mount("proc", "proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    if world.mode == "plain":
        _harden_proc()
    _build_dev(world)
    ns.pivot_to_cwd()
    os.umask(0o022)
    socket.sethostname("sandbox")
    ns.loopback_up()
    if not os.statvfs("/etc").f_flag & os.ST_RDONLY:
        for name, text in SYSTEM_FILES.items():
            _system_file(f"/etc/{name}", text)


def _finish_root(world: World, trees: list[int]) -> None:
    """Lay the caller's mounts over the root, and close it if asked."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    parts = ["/", "/dev", *(f"/{one.target}" for one in world.overlays if one.target)]
    closed = [os.open(part, flags) for part in parts] if world.read_only else []
    for given, tree in zip(world.mounts, trees, strict=True):
        lay(tree, given.target)
        os.close(tree)
    if world.workdir:
        with suppress(OSError):  # a file of the image is there: commands will say so
            os.makedirs(world.workdir, exist_ok=True)
    for part in closed:  # they are what they were before anything was laid over them
        ns.make_read_only(part)
        os.close(part)


def _directory(name: str, mode: int) -> bool:
    """A real directory at a relative name; whatever else an image has there is replaced.

    True if it was made.
    """
    try:
        if stat.S_ISDIR(os.lstat(name).st_mode):
            return False
        os.unlink(name)
    except FileNotFoundError:
        pass
    os.mkdir(name)
    os.chmod(name, mode)
    return True


def _bind_read_only(place: str, shift: bool) -> None:
    target = place.lstrip("/")
    at = ""
    for part in target.split("/"):
        at = os.path.join(at, part)
        if _directory(at, 0o755) and shift:
            os.chown(at, ns.FIRST_ID, ns.FIRST_ID)
    ns.bind_read_only(place, target)


def _harden_proc() -> None:
    """Without a user namespace root could write kernel settings; a capability drop is no help."""
    for name in _READ_ONLY_PROC:
        if os.path.exists(f"proc/{name}"):
            ns.mount(f"proc/{name}", f"proc/{name}", flags=ns.MS_BIND)
            flags = ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | ns.MS_NOSUID | ns.MS_NODEV
            ns.mount("none", f"proc/{name}", flags=flags | ns.MS_NOEXEC)
    for name in _HIDDEN_PROC:
        if os.path.isdir(f"proc/{name}"):
            ns.mount("tmpfs", f"proc/{name}", "tmpfs", ns.MS_RDONLY, "size=0")
        elif os.path.exists(f"proc/{name}"):
            ns.mount("/dev/null", f"proc/{name}", flags=ns.MS_BIND)


def _build_dev(world: World) -> None:
    ns.mount("tmpfs", "dev", "tmpfs", ns.MS_NOSUID, "mode=755,size=1m,nr_inodes=64")
    for name in _DEVICES:
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        ns.mount(f"/dev/{name}", f"dev/{name}", flags=ns.MS_BIND)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, f"dev/{name}")
    if world.live:
        _place_pod(f".{PROGRAM_PATH}")
    os.mkdir("dev/pts")
    os.mkdir("dev/shm")
    single = world.mode == "rootless" and world.user_map is None
    group = "" if single else ",gid=5"
    options = f"newinstance,ptmxmode=0666,mode=620{group}"
    ns.mount("devpts", "dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, options)
    ns.mount("tmpfs", "dev/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777,size=64m")


def _place_pod(path: str) -> None:
    """The one program of ours in a live sandbox; read-only, and a mount cannot be removed."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o755)
    os.write(fd, PROGRAM)
    os.close(fd)
    ns.mount(path, path, flags=ns.MS_BIND)
    flags = ns.MS_BIND | ns.MS_REMOUNT | ns.MS_RDONLY | ns.MS_NOSUID
    ns.mount("none", path, flags=flags)


def _system_file(path: str, text: str) -> None:
    try:
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode) and info.st_size == len(text):
            with open(path, "rb") as file:
                if file.read(len(text)) == text.encode():
                    return  # nothing to change, so a frozen layer does not hold it
        os.unlink(path)
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644)
    with open(fd, "w") as file:
        file.write(text)


def _give_up_powers(world: World) -> None:
    """What commands cannot have; this process keeps its own powers over them."""
    if world.live:
        ns.pass_capabilities_on()  # to CRIU; the pod root clears them
        # No program comes through a checkpoint with an io_uring. Its memory counts as locked (Linux
        # 6.14), so that event loops which would use one (libuv's) fall back on epoll.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    ns.limit_capabilities(frozenset() if world.lockdown else ns.KEPT_CAPABILITIES)
    if world.lockdown or world.mode == "plain":
        ns.no_new_privileges()
        ns.deny_dangerous_calls()
    ns.not_dumpable()
