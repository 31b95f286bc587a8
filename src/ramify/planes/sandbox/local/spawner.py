"""The spawner: a process of its own that starts sandboxes for one engine and cleans up after it.

It is single-threaded (forking is safe), holds no secret of the engine, and outlives it just long
enough to end every sandbox. Standard library only; started by `process.start_spawner`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time

from ramify.planes.sandbox.descent import remove
from ramify.planes.sandbox.inside import close_all_but
from ramify.planes.sandbox.local import cgroups, wire
from ramify.planes.sandbox.local import namespaces as ns
from ramify.planes.sandbox.local.launch import World, launch, map_users
from ramify.planes.sandbox.local.laying import give_back
from ramify.planes.sandbox.processes import (
    become_subreaper,
    children,
    descendants,
    send_signal,
)

_FAREWELL_SEC = 20.0
_PATIENCE_SEC = 6.0


class _Kept:
    """One sandbox, as the spawner knows it."""

    def __init__(self, name: str, world: World, launcher: int, life: int, report: int) -> None:
        self.name, self.world = name, world
        self.launcher, self.life, self.report = launcher, life, report
        self.pid = 0
        self.text = b""
        self.running = {launcher}
        self.ending: float | None = None
        self.keep_files = False
        self.emptied = False

    @property
    def over(self) -> bool:
        return self.report < 0 and not self.running


class _Spawner:
    def __init__(self, engine: socket.socket, directory: str, mode: str, engine_pid: int) -> None:
        self._engine, self._dir, self._mode = engine, directory, mode
        self._layout = cgroups.discover()
        self._kept: dict[str, _Kept] = {}
        self._removers: dict[int, str] = {}
        self._user_ns = -1
        self._maps: list[str] = []
        self._watch = os.pidfd_open(engine_pid)
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        become_subreaper()
        if mode in ("userns", "plain"):
            ns.unshare(ns.CLONE_NEWNS)
            ns.mount("none", "/", flags=ns.MS_REC | ns.MS_SLAVE)
        if mode == "userns":
            self._user_ns = ns.make_user_namespace()

    def run(self) -> None:
        """Serve until the engine is gone, then end everything."""
        while True:
            ready = self._wait()
            if self._watch in ready:
                break
            if self._engine.fileno() in ready and not self._serve_one():
                break
        self._engine.close()
        for name in list(self._kept):
            self._destroy(name, False)
        deadline = time.monotonic() + _FAREWELL_SEC
        while (self._kept or self._removers) and time.monotonic() < deadline:
            self._wait(0.01)
        os.chdir("/")
        for target in self._maps:  # nothing may be deleted through a mount
            ns.unmount(target)
        _remove(self._dir)

    def _wait(self, limit: float | None = None) -> set[int]:
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if self._engine.fileno() >= 0:
            poll.register(self._watch, select.POLLIN)
            poll.register(self._engine.fileno(), select.POLLIN)
        for kept in self._kept.values():
            if kept.report >= 0:
                poll.register(kept.report, select.POLLIN)
        if any(kept.ending is not None for kept in self._kept.values()):
            limit = 0.005
        ready = {fd for fd, _mask in poll.poll(None if limit is None else limit * 1000)}
        for kept in self._kept.values():
            if kept.report in ready:
                self._read_report(kept)
        if self._wake_r in ready:
            os.read(self._wake_r, 4096)
            self._reap()
        for kept in list(self._kept.values()):
            self._finish(kept)
        return ready

    def _serve_one(self) -> bool:
        received = wire.receive(self._engine)
        if received is None:
            return False
        message, fds = received
        op = message["op"]
        try:
            if op == "create":
                self._create(message, fds[0])
            elif op == "destroy":
                self._destroy(message["name"], message["keep_files"])
            elif op == "map":
                ns.mount_id_mapped(message["source"], message["target"], self._user_ns)
                self._maps.append(message["target"])
                self._tell("mapped", message["target"])
        except OSError as error:
            self._tell("failed", message["target" if op == "map" else "name"], str(error))
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _tell(self, event: str, name: str, text: str = "") -> None:
        if self._engine.fileno() >= 0:
            try:
                wire.send(self._engine, {"event": event, "name": name, "text": text})
            except ConnectionError:  # the engine is gone; the next poll says so
                return

    def _create(self, message: wire.Message, control: int) -> None:
        name: str = message["name"]
        wanted = cgroups.Wanted(message["memory"], message["pids"], message["cpus"])
        label = f"ramify-{os.path.basename(self._dir)}-{name}"
        world = World.parse(message, cgroups.make(self._layout, label, wanted))
        life_r, life_w = os.pipe()
        report_r, report_w = os.pipe()
        launcher = os.fork()
        if launcher == 0:
            signal.set_wakeup_fd(-1)
            close_all_but({2, control, life_r, report_w, self._user_ns})
            launch(world, socket.socket(fileno=control), life_r, report_w, self._user_ns)
        os.close(life_r)
        os.close(report_w)
        self._kept[name] = _Kept(name, world, launcher, life_w, report_r)

    def _read_report(self, kept: _Kept) -> None:
        data = os.read(kept.report, 8192)
        kept.text += data
        if not kept.pid and b"\n" in kept.text and kept.text[:1].isdigit():
            kept.pid = int(kept.text.partition(b"\n")[0])
            kept.running.add(kept.pid)
            if kept.ending is not None:
                send_signal(kept.pid, signal.SIGKILL)
        if not data:
            os.close(kept.report)
            kept.report = -1

    def _destroy(self, name: str, keep_files: bool) -> None:
        kept = self._kept.get(name)
        if kept is None:
            path = os.path.join(self._dir, name)
            if not keep_files and path not in self._removers.values() and os.path.exists(path):
                self._remove_files(path)
            self._tell("gone", name)
            return
        kept.keep_files = keep_files
        self._end(kept)

    def _end(self, kept: _Kept) -> None:
        if kept.ending is None:
            kept.ending = time.monotonic()
            os.close(kept.life)
            if kept.pid and self._mode != "bare":
                send_signal(kept.pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._removers.pop(pid, None)
            for kept in self._kept.values():
                kept.running.discard(pid)
        if self._mode == "bare":
            self._hunt_orphans()

    def _hunt_orphans(self) -> None:
        """In bare mode what lost its supervisor comes to us; nothing runs without one."""
        known = {pid for kept in self._kept.values() for pid in kept.running} | set(self._removers)
        roots = [pid for pid in children(os.getpid()) if pid not in known]
        for pid in [*roots, *(descendants(roots) if roots else [])]:
            send_signal(pid, signal.SIGKILL)

    def _finish(self, kept: _Kept) -> None:
        """Go on with the end of a sandbox, if it has begun."""
        if kept.report < 0 and not kept.running and kept.ending is None:
            self._end(kept)  # it ended by itself, or could not be built
        if kept.ending is None:
            return
        if not kept.over:
            if kept.pid and time.monotonic() - kept.ending > _PATIENCE_SEC:
                send_signal(kept.pid, signal.SIGKILL)
            return
        if not kept.emptied and not kept.keep_files:
            kept.emptied = True
            # Else the engine does it: its store knows who else needs what.
            if self._engine.fileno() < 0 or kept.world.user_map is not None:
                kept.running.add(self._empty(kept.world))
                return
        # A living engine is not kept waiting for ever; after its death there is all the time.
        waited = time.monotonic() - kept.ending
        late = self._engine.fileno() >= 0 and waited > _PATIENCE_SEC
        if cgroups.remove(kept.world.cgroups) and not late:
            return  # busy: the next round tries again
        del self._kept[kept.name]
        text = kept.text.partition(b"!")[2].decode("utf-8", "replace")
        if not kept.keep_files:
            self._remove_files(os.path.join(self._dir, kept.name))
        self._tell("gone", kept.name, text)

    def _empty(self, world: World) -> int:
        """Delete what a sandbox changed, in a process of its own; returns its pid.

        Owners may only exist in the sandbox's user namespace: then it enters one like that.
        """
        pid = os.fork()
        if pid:
            return pid
        try:
            if world.user_map is not None:
                map_users(world.user_map)
            for overlay in world.overlays:
                for place in (overlay.upper, overlay.work):
                    _remove(place)
            for scratch in filter(None, (given.scratch for given in world.mounts)):
                _remove(f"{scratch}/work")  # what was written is its owner's
                if world.user_map is not None:
                    give_back(scratch)
        except OSError as error:
            sys.stderr.write(f"ramify: cannot remove the files of a sandbox: {error}\n")
        finally:
            os._exit(0)

    def _remove_files(self, path: str) -> None:
        """Delete a sandbox's directory in a process of its own: big trees take long."""
        pid = os.fork()
        if pid:
            self._removers[pid] = path
            return
        try:
            _remove(path)
        except OSError as error:
            sys.stderr.write(f"ramify: cannot remove {path}: {error}\n")
        finally:
            os._exit(0)


def _remove(path: str) -> None:
    parent, name = os.path.split(path)
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove(fd, os.fsencode(name))
    finally:
        os.close(fd)


def main(fd: str, directory: str, mode: str, engine_pid: str) -> None:
    """Entry point of the spawner process.

    Args: the descriptor of the engine's socket, the engine's directory, the mode, and the
    engine's process id.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o022)
    engine = socket.socket(fileno=int(fd))
    spawner = _Spawner(engine, directory, mode, int(engine_pid))
    wire.send(engine, {"event": "ready", "name": "", "text": ""})
    gc.disable()  # forks share the heap: collecting would copy it
    gc.freeze()
    spawner.run()
