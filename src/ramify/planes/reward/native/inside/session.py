"""Runs the tests of a task, alone in the verifier's sandbox: standard library, Python 3.8 syntax.

Started as an unprivileged user, by `python -I`, with its instructions on standard input. It
reports each test on its original standard output, a pipe that is closed to every process but this
one, and gives the tests another one. A line of a report is the nonce it was given and a JSON
object; whoever wants to forge one has to be in this very process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import tempfile
import unittest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_MAX_MESSAGE = 2000
_FILES = 4096
_WORST = ("passed", "skipped", "failed", "error")
_STATUS_LINES = {"Seccomp", "NoNewPrivs", "CapEff", "CapBnd"}


class Channel:
    """Where results go. Nothing of it is looked up again once code under test may run."""

    def __init__(self, nonce: str) -> None:
        fd = os.dup(1)  # not inheritable: closed in every program that a test starts
        os.dup2(2, 1)
        number = 0

        def say(
            record: dict[str, Any],
            write: Callable[[int, bytes], int] = os.write,
            dumps: Callable[..., str] = json.dumps,
        ) -> None:
            nonlocal number
            number += 1
            data = f"{nonce} {dumps(dict(record, n=number))}\n".encode()
            while data:
                data = data[write(fd, data) :]

        self.say = say

    def case(self, name: str, status: str, seconds: float = 0.0, message: str = "") -> None:
        """How one test ended."""
        text = message[-_MAX_MESSAGE:].encode(errors="replace").decode()
        self.say({"id": name, "status": status, "sec": round(seconds, 6), "message": text})


def _seal() -> bool:
    """Close this process to others of its user: no tracing, no reading its descriptors."""
    try:
        import ctypes
    except ImportError:  # a Python that was built without it
        return False
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0


def _facts(sealed: bool) -> dict[str, Any]:
    """What holds for this process, as the kernel says it."""
    found: dict[str, Any] = {"uid": os.getuid(), "gid": os.getgid(), "sealed": sealed}
    with open("/proc/self/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in _STATUS_LINES:
                found[name] = value.strip()
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return found


def _settle(wanted: dict[str, Any]) -> None:
    """An environment of our own, a place for temporary files, bounds on what is inherited."""
    home = tempfile.mkdtemp(prefix="ramify-tests-")
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.environ.update(HOME=home, TMPDIR=home, RAMIFY_WORKDIR=wanted["workdir"])
    tempfile.tempdir = home
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.umask(0o022)
    os.chdir(wanted["workdir"])


def _watch(channel: Channel, roots: list[str], hidden: list[str]) -> None:
    """Say so, before it runs, when code of the agent comes into this process.

    And follow no link from its files to what only this process may read: code in an isolated call
    could have made one, to have a test compare what it expects with itself.
    """
    places = tuple(os.path.join(os.path.realpath(root), "") for root in roots) + tuple(
        os.path.join(root, "") for root in roots
    )
    closed = tuple(os.path.join(os.path.realpath(path), "") for path in (*hidden, "/proc"))
    said = False

    def spellings(name: object) -> tuple[str, str] | None:
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if not isinstance(name, str) or name.startswith("<"):
            return None
        return os.path.join(os.path.abspath(name), ""), os.path.join(os.path.realpath(name), "")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal said
        if event == "open":
            found = spellings(args[0])
            if found and found[0].startswith(places) and found[1].startswith(closed):
                raise PermissionError(f"{args[0]} is a link to what the tests hide")
            return
        if said or event not in ("exec", "import", "ctypes.dlopen"):
            return
        if event == "exec":
            found = spellings(getattr(args[0], "co_filename", None))
        else:
            found = spellings(args[1] if event == "import" else args[0])
        if found and (found[0].startswith(places) or found[1].startswith(places)):
            said = True
            channel.say({"in_process": found[0][-300:-1]})

    sys.addaudithook(hook)


def _load(path: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Outcomes(unittest.TestResult):
    """Reports each test once, at its end, with the worst that was said about it."""

    def __init__(self, channel: Channel, name_of: Callable[[Any], str]) -> None:
        super().__init__()
        self._channel, self._name_of = channel, name_of
        self._status, self._message = "passed", ""
        self.reported = 0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 (unittest's name)
        super().startTest(test)
        self._status, self._message = "", ""

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802 (unittest's name)
        super().stopTest(test)
        # A test of which nothing was said did not pass.
        self._channel.case(self._name_of(test), self._status or "error", 0.0, self._message)

    def _note(self, status: str, message: str = "") -> None:
        if not self._status or _WORST.index(status) > _WORST.index(self._status):
            self._status, self._message = status, message
        sys.stderr.write(f"  {status} {message}\n")

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802 (unittest's name)
        self._note("passed")

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802 (unittest's name)
        self._note("failed", self._shown(err))

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802 (unittest's name)
        if isinstance(test, unittest.TestCase):
            self._note("error", self._shown(err))
        else:  # a class or module that could not be set up
            self._channel.case(str(test), "error", 0.0, self._shown(err))

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802 (unittest's name)
        if isinstance(test, unittest.TestCase):
            self._note("skipped", reason)
        else:
            self._channel.case(str(test), "skipped", 0.0, reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:  # noqa: N802 (unittest's name)
        self._note("skipped", "failed as expected")

    def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802 (unittest's name)
        self._note("failed", "passed against expectation")

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802 (unittest's name)
        if err is not None:
            kind = "failed" if issubclass(err[0], test.failureException) else "error"
            self._note(kind, self._shown(err))

    def _shown(self, err: Any) -> str:
        return f"{err[0].__name__}: {err[1]}"[-_MAX_MESSAGE:]


def run_unittest(tests: str, wanted: list[str], channel: Channel) -> int:
    """The tests of these files below a directory, in order. Some of them always fail."""
    files: dict[str, str] = {}
    suite = unittest.TestSuite()
    loader = unittest.TestLoader()
    for relative in wanted:
        path = os.path.join(tests, relative)
        name = relative[:-3].replace("/", ".")
        files[name] = relative
        try:
            suite.addTests(loader.loadTestsFromModule(_load(path, name)))
        except unittest.SkipTest as error:
            channel.case(relative, "skipped", 0.0, str(error))
        except Exception as error:
            channel.case(relative, "error", 0.0, f"{type(error).__name__}: {error}")

    def name_of(test: object) -> str:
        kind = type(test)
        file = files.get(kind.__module__, kind.__module__)
        method = getattr(test, "_testMethodName", str(test))
        return f"{file}::{kind.__qualname__.replace('.', '::')}::{method}"

    outcomes = _Outcomes(channel, name_of)
    suite.run(outcomes)
    return 1


class _PytestPlugin:
    """Reports each test once, at its end, with the worst of its phases."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._worst: dict[str, tuple[str, str]] = {}
        self._seconds: dict[str, float] = {}

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome != "passed":
            status = "error" if report.outcome == "failed" else "skipped"
            self._channel.case(report.nodeid or "collection", status, 0.0, _text(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid
        status = {"passed": "passed", "skipped": "skipped"}.get(report.outcome, "failed")
        if status == "failed" and report.when != "call":
            status = "error"
        if hasattr(report, "wasxfail"):
            status = "skipped" if status != "failed" else status
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        before = self._worst.get(name)
        if before is None or _WORST.index(status) > _WORST.index(before[0]):
            self._worst[name] = (status, "" if status == "passed" else _text(report))
        if report.when == "teardown":
            worst, message = self._worst.pop(name)
            self._channel.case(name, worst, self._seconds.pop(name), message)


def _text(report: Any) -> str:
    crash = getattr(getattr(report, "longrepr", None), "reprcrash", None)
    return str(crash.message if crash is not None else report.longrepr or "")[-_MAX_MESSAGE:]


def run_pytest(tests: str, wanted: list[str], ini: str, channel: Channel) -> int:
    """The tests of these files below a directory, in order, with no plugins but those they name."""
    import pytest

    own = os.path.join(tests, "pytest.ini")
    ini = own if os.path.isfile(own) else ini
    arguments = [
        *("-c", ini, "--rootdir", tests, "--confcutdir", tests, "--import-mode=importlib"),
        *("-p", "no:cacheprovider", "--continue-on-collection-errors", "--color=no"),
        *("-q", "--tb=short", *(os.path.join(tests, name) for name in wanted)),
    ]
    return int(pytest.main(arguments, plugins=[_PytestPlugin(channel)]))


def main() -> int:
    """Read what is wanted, run it, report. The last thing said is how it ended."""
    leave = os._exit
    wanted: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    channel = Channel(wanted["nonce"])
    sealed = _seal()
    _settle(wanted)
    if wanted["site"]:  # started without `site`, whose hooks an agent may have written
        import site

        sys.path += [path for path in site.getsitepackages() if path not in sys.path]
    sys.path += wanted["packages"]
    here = os.path.dirname(os.path.abspath(__file__))
    facts = _facts(sealed)
    try:
        if wanted["runner"] == "pytest":
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            import pytest

            facts["runner"] = str(pytest.__version__)
    except ImportError as error:
        channel.say({"lacks": f"pytest ({error})", "python": sys.executable})
        leave(3)
    channel.say({"start": facts})
    calls = _load(os.path.join(here, "ramify_tests.py"), "ramify_tests")
    calls.connect(wanted["socket"], wanted["code_uid"], wanted["workdir"])
    sys.path.insert(0, wanted["tests"])
    _watch(channel, wanted["theirs"], [wanted["tests"], os.environ["HOME"]])
    if wanted["runner"] == "pytest":
        ini = os.path.join(here, "pytest.ini")
        code = run_pytest(wanted["tests"], wanted["files"], ini, channel)
    else:
        code = run_unittest(wanted["tests"], wanted["files"], channel)
    sys.stdout.flush()
    sys.stderr.flush()
    channel.say({"end": code})
    leave(code)  # nothing that the code under test registered runs after this
    return code


if __name__ == "__main__":
    sys.exit(main())
