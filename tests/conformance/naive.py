"""A sandbox as one writes it in an afternoon: it claims isolation and has none of the guarantees.

It exists to be caught by the conformance suite. What it starts carries `NAIVE_SANDBOX` in its
environment, so that the test can end what the naive sandbox leaves behind.
"""

# ruff: noqa: ASYNC240  (blocking the event loop is one of the things it does wrong)

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from ramify.contracts.errors import SandboxError
from ramify.contracts.sandbox import (
    Capabilities,
    ExecResult,
    NetworkMode,
    ProbeReport,
    SandboxImage,
    TransferReport,
)

CLAIMS = Capabilities(
    isolation="namespaces",
    lockdown=False,
    snapshot="freeze",
    network=frozenset(NetworkMode),
    limits=frozenset(),
    host_root=True,
    images=True,
    builds=True,
    mounts=frozenset({"ro", "rw", "cow"}),
)


class NaiveProcess:
    """Pipes, and a kill of the one process that we know."""

    def __init__(self, process):
        self._process, self.pid = process, process.pid

    async def write(self, data):
        self._process.stdin.write(data)  # no drain, no BrokenPipeError

    async def close_stdin(self):
        self._process.stdin.close()

    async def read(self, max_bytes=65536):
        return await self._process.stdout.read(max_bytes)

    async def read_err(self, max_bytes=65536):
        return await self._process.stderr.read(max_bytes)

    async def resize(self, size):
        pass

    async def signal(self, number):
        self._process.send_signal(number)

    async def wait(self):
        return await self._process.wait()  # asyncio waits for the pipes, too; negative on signals

    async def aclose(self):
        if self._process.returncode is None:
            self._process.kill()


class NaiveSandbox:
    """`subprocess` with the tempting defaults."""

    def __init__(self, spec):
        self.id, self.spec = uuid.uuid4().hex, spec
        self._processes = []
        self._places = []  # directories that a check made; on the host, alas

    def capabilities(self):
        return CLAIMS

    async def _start(self, command, cwd, env):
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={**os.environ, **self.spec.env, **(env or {}), "NAIVE_SANDBOX": self.id},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    async def exec(
        self,
        command,
        *,
        user=None,
        cwd=None,
        env=None,
        stdin=None,
        timeout_sec=None,
        output_limit=0,
        kill_leftovers=False,
    ):
        process = await self._start(command, cwd, env)
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), timeout_sec)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGTERM)
            return ExecResult(124, timed_out=True)
        if out.startswith(b"/tmp/conformance."):
            self._places.append(out.decode().strip())
        return ExecResult(process.returncode, out, err)

    async def spawn(self, command, *, user=None, cwd=None, env=None, pty=None):
        try:
            return NaiveProcess(await self._start(command, cwd, env))
        except OSError as error:
            raise SandboxError(str(error)) from error

    async def upload(self, local, remote, *, owner=None, mode=None, clear=False):
        if clear and Path(remote).exists():
            shutil.rmtree(os.path.realpath(remote))
        if local.is_dir():
            shutil.copytree(local, remote, dirs_exist_ok=True)
        else:
            shutil.copyfile(local, remote)

    async def download(self, remote, local, *, limits=None):
        if Path(remote).is_dir():
            shutil.copytree(remote, local)
        else:
            shutil.copy(remote, local)
        return TransferReport(1, 1)

    async def freeze(self):
        return SandboxImage("frozen", "naive", "", parent="", pristine=False)

    async def teardown(self):
        ours = f"NAIVE_SANDBOX={self.id}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if ours in (entry / "environ").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    continue  # it ended meanwhile
        for place in self._places:
            shutil.rmtree(place, ignore_errors=True)
        for process in self._processes:
            process._transport.close()
            await process.wait()


class NaiveProvider:
    """Makes naive sandboxes."""

    name = "naive"

    def capabilities(self):
        return CLAIMS

    async def probe(self):
        return ProbeReport(True, "naive", "works on my machine")

    async def prepare(self, spec):
        return SandboxImage(uuid.uuid4().hex, "naive", "")

    async def create(self, spec, image=None):
        return NaiveSandbox(spec)

    async def discard(self, image):
        pass

    async def sweep(self):
        return 0

    async def aclose(self):
        pass
