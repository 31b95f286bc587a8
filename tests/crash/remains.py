"""What engines may leave behind, counted from outside: by ps, docker, /proc/mounts and cgroups.

Only what belongs to engines of one RAMIFY_HOME is counted: others may be at work on this machine.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType


class Witness:
    """Watches one home while engines come and go, and says what is left of them.

    The cgroups of `local` are called `ramify-<engine>-<sandbox>`, and an engine is known by its
    directory in the home, which goes when it is swept; so the names are noted while they are
    there. Everything else names the home itself: the environment or the mounts of a process, a
    mount's source, a container's lock file.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.engines: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def left(self) -> list[str]:
        """Everything of this home's engines that is there now."""
        return [*self.processes(), *self.mounts(), *self.cgroups(), *self.docker()]

    def left_after(self, seconds: float = 2.0) -> list[str]:
        """What is still there after at most `seconds`."""
        deadline = time.monotonic() + seconds
        while left := self.left():
            if time.monotonic() > deadline:
                return left
            time.sleep(0.05)
        return []

    def processes(self) -> list[str]:
        """Processes with this home in their environment, their command or their mounts."""
        found: list[str] = []
        home = os.fsencode(self.home)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                told = (entry / "environ").read_bytes() + command
                told += (entry / "mountinfo").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it ended while we looked
            if home in told and state not in "ZX" and b"docker\0" not in command:
                words = command.replace(bytes(1), b" ").decode(errors="replace")
                found.append(f"process {entry.name} ({state}): {words}")
        return found

    def mounts(self) -> list[str]:
        """Mounts that every process of the machine would see."""
        lines = Path("/proc/mounts").read_text().splitlines()
        return [f"mount {line}" for line in lines if str(self.home) in line]

    def cgroups(self) -> list[str]:
        """Control groups of engines of this home."""
        found = [
            f"{parent}/{name}"
            for parent, names, _ in os.walk("/sys/fs/cgroup")
            for name in names
            if name.startswith("ramify-") and name.split("-")[1] in self.engines
        ]
        return [f"cgroup {path}" for path in found if os.path.isdir(path)]

    def docker(self) -> list[str]:
        """Containers and networks whose label names a lock file below this home."""
        form = '{{.ID}} {{.Status}} {{.Label "ramify.lock"}}'
        containers = _docker("ps", "-a", "--no-trunc", "--format", form)
        networks = _docker("network", "ls", "--format", '{{.ID}} {{.Label "ramify.lock"}}')
        lines = [f"container {line}" for line in containers]
        lines += [f"network {line}" for line in networks]
        return [line for line in lines if str(self.home) in line]

    def scratch(self, job: Path) -> list[str]:
        """Scratch directories and drafts in the home and in a job's directory.

        A kill leaves them there, until the next engine starts, or opens the job.
        """
        kept = [*(self.home / "tmp").glob("*"), *job.rglob(".ramify-*"), *job.rglob(".*draft")]
        return [f"scratch {path}" for path in kept]

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            try:
                self.engines.update(os.listdir(self.home / "sandbox" / "run"))
            except FileNotFoundError:
                continue  # no engine of `local` was there yet


def _docker(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except FileNotFoundError:
        return []  # no Docker here, so nothing of ours in it
    except subprocess.CalledProcessError as error:
        if "Cannot connect to the Docker daemon" not in error.stderr:
            raise  # what could not be counted is not nothing
        return []
    return done.stdout.splitlines()
