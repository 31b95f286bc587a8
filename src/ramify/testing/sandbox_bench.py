"""What sandbox checks run on: a provider, a spec, and helpers that look from inside.

Inside a sandbox only `/bin/sh`, `grep` and coreutils are taken for granted; everything else is
looked for, and its absence skips the check.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.sandbox import (
    NetworkMode,
    Sandbox,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
)
from ramify.testing.check import CheckSkipped, ConformanceError, require


def count_mounts(foreign: str | None = None) -> int:
    """Mounts of this mount namespace, those at a path with `foreign` in it left out."""
    points = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return sum(foreign is None or foreign not in point for point in points)


@dataclass(frozen=True, slots=True)
class SandboxBench:
    """A provider under test.

    Attributes:
        provider: it, prepared or not; shared by many checks and never closed by one.
        spec: a spec that it can serve; checks change what they are about.
        scratch: an empty directory of this check on the engine's host.
        fresh: makes another provider, for the checks that close one (skipped where None).
        traces: counts what sandboxes of this test's providers hold outside of processes; by default
            the mounts of this mount namespace. Give one where somebody else may mount meanwhile.
    """

    provider: SandboxProvider
    spec: SandboxSpec
    scratch: Path
    fresh: Callable[[], SandboxProvider] | None = None
    traces: Callable[[], int] = count_mounts

    async def missing(self, need: str) -> str | None:
        """See `Bench.missing`.

        Needs: `isolation`, `lockdown`, `freeze`, `host_root`, `images`, `fresh`, `network.<mode>`,
        `limits.<name>`, `mounts.<mode>`.
        """
        capabilities = self.provider.capabilities()
        kind, _, name = need.partition(".")
        offers = {
            "isolation": capabilities.isolation != "none",
            "lockdown": capabilities.lockdown,
            "freeze": capabilities.snapshot != "none",
            "host_root": capabilities.host_root,
            "images": capabilities.images,
            "fresh": self.fresh is not None,
            "limits": name in capabilities.limits,
            "mounts": name in capabilities.mounts,
            "network": kind == "network" and NetworkMode(name) in capabilities.network,
        }
        if kind not in offers:
            raise ValueError(f"unknown need {need!r}; known: {sorted(offers)}")
        return None if offers[kind] else f"{self.provider.name} does not offer {need}"

    @asynccontextmanager
    async def sandbox(
        self, spec: SandboxSpec | None = None, image: SandboxImage | None = None
    ) -> AsyncGenerator[Sandbox]:
        """A new sandbox, torn down at the end."""
        sandbox = await self.provider.create(spec or self.spec, image)
        try:
            yield sandbox
        finally:
            await sandbox.teardown()

    @asynccontextmanager
    async def place(self, spec: SandboxSpec | None = None) -> AsyncGenerator[tuple[Sandbox, str]]:
        """A new sandbox and a directory inside that nothing else uses; both go at the end.

        Where the provider does not isolate, paths given to it are below `$RAMIFY_ROOT`, and paths
        in commands are the host's (contracts/inside.py): there a link on the host makes the
        directory's path lead to the same place in both.
        """
        async with self.sandbox(spec) as sandbox:
            work = await sh(sandbox, "mktemp -d /tmp/conformance.XXXXXX")
            bare = await root_of(sandbox)
            mapped = f"{bare}{work}"
            if bare:
                await sh(sandbox, f"mkdir -p {mapped} && rmdir {work} && ln -s {mapped} {work}")
            try:
                yield sandbox, work
            finally:
                if bare:
                    await sandbox.exec(f"rm -rf {mapped} {work}")


async def sh(sandbox: Sandbox, script: str, *, user: str | None = None) -> str:
    """Output of a script that must succeed, without surrounding white space."""
    result = await sandbox.exec(script, user=user, timeout_sec=20)
    require(result.ok, f"`{script}` ended with {result.exit_code} inside: {result.stderr[-400:]!r}")
    return result.stdout.decode("utf-8", "backslashreplace").strip()


async def root_of(sandbox: Sandbox) -> str:
    """What stands before an absolute path inside, in commands (contracts/inside.py): "" or a path.

    Only a provider that does not isolate has such a directory.
    """
    return await sh(sandbox, 'echo "$RAMIFY_ROOT"')


async def need_program(sandbox: Sandbox, *names: str) -> str:
    """The first of `names` that is found inside. Raises CheckSkipped if none is."""
    for name in names:
        if (await sandbox.exec(f"command -v {name}", timeout_sec=10)).ok:
            return name
    raise CheckSkipped(f"none of {', '.join(names)} is found inside")


async def need_user(sandbox: Sandbox, name: str) -> None:
    """Raises CheckSkipped unless there is a user `name` inside."""
    if not (await sandbox.exec(f"grep -q '^{name}:' /etc/passwd", timeout_sec=10)).ok:
        raise CheckSkipped(f"there is no user {name} inside")


def mark() -> str:
    """A number of seconds that no other process sleeps for: `sleep {mark()}` can be found again."""
    return f"300.{random.randrange(10**14, 10**15)}"


async def alive(sandbox: Sandbox, marker: str) -> int:
    """How many live processes inside carry `marker` on their command line."""
    # The bracket keeps the scanner, whose own command line holds the pattern, from finding itself.
    pattern = f"[{marker[0]}]{re.escape(marker[1:])}"
    script = f"grep -la '{pattern}' /proc/[0-9]*/cmdline 2>/dev/null; :"
    return len((await sh(sandbox, script)).split())


async def until_alive(sandbox: Sandbox, marker: str, count: int, *, seconds: float = 2.0) -> None:
    """Wait until exactly `count` processes carry `marker`. Raises ConformanceError if not."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    found = await alive(sandbox, marker)
    while found != count:
        if loop.time() > end:
            raise ConformanceError(
                f"{found} processes of the command are alive inside, expected {count}"
            )
        await asyncio.sleep(0.05)
        found = await alive(sandbox, marker)


def engine_rss() -> int:
    """Resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise CheckSkipped("/proc/self/status does not tell the resident memory")
