"""The supervisor's core: start, report, and kill everything a command started."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import pytest

from ramify.planes.sandbox.inside import Command, Event, Job, Jobs, find_user


class _Run:
    """One job driven to its end, in a process of its own so that the test stays no subreaper."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.events: list[Event] = []

    def start(self, argv: list[str], **options: object) -> tuple[Job, int]:
        out_r, out_w = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        job = self.jobs.start(Command(argv, (null, out_w, out_w), **options))  # type: ignore[arg-type]
        os.close(out_w)
        os.close(null)
        return job, out_r

    def until(self, kind: str, seconds: float = 10.0) -> Event:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ready, _, _ = select.select(self.jobs.fds(), [], [], 0.002)
            for fd in ready:
                self.events += self.jobs.read(fd)
            self.events += self.jobs.tick()
            for event in self.events:
                if event.kind == kind:
                    return event
        raise AssertionError(f"no {kind} event, only {[e.kind for e in self.events]}")


def _in_child(body: str) -> None:
    """Run `body` (source using `_Run`) in a fresh interpreter: a subreaper must not be pytest."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "import os, signal, time\nfrom test_local_inside import Command, _Run, _alive\n"
    code += "from ramify.planes.sandbox.inside import open_terminal\n" + body
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], dict(os.environ))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _alive(marker: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                data = Path(f"/proc/{name}/cmdline").read_bytes()
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            state = stat.rpartition(")")[2].split()[0]
            if marker.encode() in data and b"import sys" not in data and state != "Z":
                found.append(int(name))
    return found


def test_exit_status_is_reported_at_once_though_a_daemon_lives_on() -> None:
    _in_child(
        """
run = _Run()
job, out = run.start(["/bin/sh", "-c", "(setsid sleep 4567.1 &) ; exit 7"])
begin = time.monotonic()
event = run.until("ended")
assert os.waitstatus_to_exitcode(event.value) == 7
assert time.monotonic() - begin < 1
assert _alive("4567.1")
run.jobs.kill(job)
assert run.until("gone").value == 0
assert not _alive("4567.1")
"""
    )


KILL_CASES = {
    "plain": "exec sleep 60.{mark}",
    "child": "sleep 60.{mark} & wait",
    "deaf": "trap '' TERM INT HUP; while :; do sleep 60.{mark}; done",
    "setsid": "setsid sleep 60.{mark} & wait",
    "double-fork": "( ( setsid sleep 60.{mark} & ) & ) ; sleep 0.2",
    "stopped": "sleep 60.{mark} & kill -STOP $!; kill -STOP $$",
    "forking": "f() {{ sleep 60.{mark} & sleep 0.01; f & }}; f; wait",
}


@pytest.mark.parametrize("case", sorted(KILL_CASES))
def test_kill_leaves_no_survivor(case: str) -> None:
    mark = f"{os.getpid()}{sorted(KILL_CASES).index(case)}"
    script = KILL_CASES[case].format(mark=mark)
    _in_child(
        f"""
run = _Run()
job, out = run.start(["/bin/sh", "-c", {script!r}])
run.until("started")
time.sleep(0.3)
assert _alive("60.{mark}")
run.jobs.kill(job)
assert run.until("gone").value == 0
assert not _alive("60.{mark}")
"""
    )


def test_killed_nanny_leaves_no_survivor() -> None:
    _in_child(
        """
run = _Run()
job, out = run.start(["/bin/sh", "-c", "setsid sleep 4567.2 & kill -9 $PPID; sleep 4567.2"])
assert run.until("ended").value == signal.SIGKILL
run.until("gone")
end = time.monotonic() + 2
while _alive("4567.2") and time.monotonic() < end:
    run.jobs.tick()
    time.sleep(0.002)
assert not _alive("4567.2")
"""
    )


def test_killed_supervisor_leaves_no_survivor() -> None:
    mark = f"4567.{os.getpid()}"
    _in_child(
        f"""
pid = os.fork()
if pid == 0:
    run = _Run()
    run.start(["/bin/sh", "-c", "setsid sleep {mark} & sleep {mark}"])
    run.until("started")
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
"""
    )
    end = time.monotonic() + 3
    while _alive(mark) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _alive(mark)


@pytest.mark.parametrize(
    ("argv", "options", "code"),
    [
        (["no-such-program-here"], "", 127),
        (["/etc/passwd"], "", 126),
        (["true"], "cwd='/no/such/dir'", 126),
        (["true"], "user='no-such-user'", 126),
    ],
)
def test_what_cannot_start_says_why(argv: list[str], options: str, code: int) -> None:
    _in_child(
        f"""
run = _Run()
run.start({argv!r}, {options})
event = run.until("failed")
assert event.value == {code}, event
assert event.text
run.until("gone")
"""
    )


def test_terminal_is_controlling_and_has_its_size() -> None:
    _in_child(
        """
ours, theirs = open_terminal(31, 97)
jobs = _Run()
job = jobs.jobs.start(Command(["/bin/sh", "-c", "stty size < /dev/tty"], (theirs,) * 3, tty=True))
os.close(theirs)
assert os.waitstatus_to_exitcode(jobs.until("ended").value) == 0
assert os.read(ours, 100).strip() == b"31 97"
"""
    )


def test_users_are_read_from_the_given_files(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("junk\nada:x:1000:1001::/home/ada:/bin/sh\n")
    (tmp_path / "group").write_text("ada:x:1001:\nwheel:x:10:bob,ada\nfoo:x:12:adam\n")
    etc = str(tmp_path)
    assert find_user("ada", etc) == ("ada", 1000, 1001, [10, 1001], "/home/ada")
    assert find_user("1000", etc).name == "ada"
    assert find_user("77", etc) == ("77", 77, 0, [0], "/")
    assert find_user("77:wheel", etc).gid == 10
    assert find_user("root", etc).uid == 0
    for wrong in ("eve", "ada:nogroup"):
        with pytest.raises(LookupError):
            find_user(wrong, etc)


def test_default_signals_and_descriptors() -> None:
    _in_child(
        """
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
run = _Run()
leak = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(leak, True)
job, out = run.start(["/bin/sh", "-c", "ls /proc/self/fd | wc -l; grep SigIgn /proc/self/status"])
run.until("ended")
lines = os.read(out, 4096).decode().split("\\n")
assert lines[0] == "4", lines
assert int(lines[1].split()[1], 16) & 0x7FFFFFFF == 0, lines
"""
    )
