"""The office's services as processes of the test, on ports and data of their own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

OFFICE = Path(__file__).parents[2] / "examples" / "worlds" / "office"
NAMES = ("mail", "calendar", "files", "chat")
DANA = {"Authorization": "Bearer dana-desk-7f31"}


def free_ports() -> int:
    """The first of four free ports in a row."""
    for first in range(20000 + os.getpid() % 2500 * 4, 60000, 4):
        with closing(socket.socket()) as one:
            try:
                one.bind(("127.0.0.1", first + 3))
                for port in range(first, first + 3):
                    with closing(socket.socket()) as other:
                        other.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no four free ports")


class Office:
    """Four running services below `root`, laid out as in a sandbox; `close` ends them."""

    def __init__(self, root: Path, task: str = "", databases: dict[str, str] | None = None) -> None:
        self.root = root
        self.home = root / "srv" / "office"
        self.data = root / "data"
        self.task = task
        self.first = free_ports()
        self.databases = databases or {}
        if not self.home.exists():
            ignored = shutil.ignore_patterns("__pycache__", "office_grader")
            shutil.copytree(OFFICE / "world", self.home, ignore=ignored)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name in NAMES:
                self.start(name)
            self.wait()
        except BaseException:
            self.close()
            raise

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "OFFICE_PORT": str(self.first),
            "OFFICE_TASK_ID": self.task,
            "OFFICE_HOME": str(self.home),
            "RAMIFY_ROOT": str(self.root),
        }

    def start(self, name: str) -> None:
        line = [sys.executable, "-m", "services", name, "--data", str(self.data)]
        env = self.env
        if name in self.databases:
            env["OFFICE_DB"] = self.databases[name]
        log = (self.root / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                line, cwd=self.home, env=env, stdout=log, stderr=log
            )

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        self.processes[name].send_signal(number)
        self.processes[name].wait(20)

    def wait(self, names: Sequence[str] = NAMES) -> None:
        deadline = time.monotonic() + 60
        for name in names:
            while True:
                assert self.processes[name].poll() is None, (self.root / f"{name}.log").read_text()
                assert time.monotonic() < deadline, f"{name} never came up"
                try:
                    assert self.ask(name, "GET", "/health?ramify_nonce=n")[1]["nonce"] == "n"
                    break
                except OSError:
                    time.sleep(0.05)

    def ask(
        self,
        name: str,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON (else bytes); as Dana where no header says otherwise."""
        sent = dict(DANA if headers is None else headers)
        data = body
        if body is not None and not isinstance(body, bytes):
            sent.setdefault("Content-Type", "application/json")
            data = json.dumps(body).encode()
        port = self.first + NAMES.index(name)
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            raw = answer.read()
            is_json = answer.headers.get("Content-Type") == "application/json"
            return answer.status, json.loads(raw) if raw and is_json else raw

    def ok(self, name: str, method: str, path: str, body: Any = None, user: str = "") -> Any:
        headers = {"X-Act-As": f"{user}@north.example"} if user else None
        status, answer = self.ask(name, method, path, body, headers)
        assert 200 <= status < 300, (status, answer)
        return answer

    def refused(self, name: str, method: str, path: str, body: Any = None, user: str = "") -> str:
        headers = {"X-Act-As": f"{user}@north.example"} if user else None
        status, answer = self.ask(name, method, path, body, headers)
        assert status >= 400, answer
        return f"{status} {answer['error']['code']}"

    def log(self, name: str) -> list[dict[str, Any]]:
        return self.ok(name, "GET", "/_log")["entries"]

    def dump(self, *args: str) -> dict[str, dict[str, Any]]:
        line = [sys.executable, "-m", "services.dump", *args]
        return json.loads(subprocess.check_output(line, cwd=self.home, env=self.env, timeout=60))

    def close(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is None:
                self.stop(name, signal.SIGKILL)


def offices(root: Path, task: str = "") -> Iterator[Office]:
    """For fixtures: one office, closed at the end."""
    office = Office(root, task)
    try:
        yield office
    finally:
        office.close()
