"""How a driver reaches into its sandbox: through the Sandbox contract, trusting nothing inside."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import EnvironmentFailed, SandboxLostError, TransferLimitError
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import MIB, ExecResult, Sandbox, TransferLimits

_LIMITS = TransferLimits(
    max_bytes=16 * 1024 * MIB, max_file_bytes=8 * 1024 * MIB, max_entries=100_000
)
# `**` stands for any number of directories, which a shell does not know: `find` does the walk.
_EXPAND = r"""
IFS=; R=$RAMIFY_ROOT; printf '%s\0' "$R"
show='printf "%s\0" "$f"; stat -c "%u %g %a" -- "$f"; printf "\0"'
for p in "$@"; do
  case $p in
  *'**'*) find "$R$(dirname -- "${p%%\**}x")" -path "$R$(printf %s "$p" | sed 's,\*\*/,*,g')" \
          -exec sh -c "for f; do $show; done" sh {} + 2>/dev/null;;
  *) for f in $R$p; do if [ -e "$f" ] || [ -L "$f" ]; then eval "$show"; fi; done;;
  esac
done
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom a path belongs: numbers of the inside, and the mode in octal."""

    uid: int
    gid: int
    mode: str

    def __str__(self) -> str:
        return f"{self.mode} {self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class Hands:
    """A driver's hands inside: its sandbox, what it is called, as whom it acts and for how long."""

    sandbox: Sandbox
    name: str
    user: str
    timeout_sec: float

    def failed(self, why: str) -> EnvironmentFailed:
        """The error of this part of the world."""
        return EnvironmentFailed(f"{self.name}: {why}")

    async def ask(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = 16 * MIB,
    ) -> ExecResult:
        """Run a command and return however it ended. Raises EnvironmentFailed when it hangs."""
        result = await self.sandbox.exec(
            command,
            user=self.user,
            cwd="/",
            env=env,
            stdin=stdin,
            timeout_sec=self.timeout_sec,
            output_limit=limit,
        )
        if result.timed_out:
            raise self.failed(f"a command did not end within {self.timeout_sec:g} s")
        return result

    async def run(
        self,
        command: str | Sequence[str],
        doing: str,
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = 16 * MIB,
    ) -> bytes:
        """What a command prints. Raises EnvironmentFailed (`doing` failed) unless it exits 0."""
        result = await self.ask(command, stdin=stdin, env=env, limit=limit)
        if not result.ok:
            raise self.failed(f"cannot {doing}: {tail(result)}")
        if result.stdout_dropped:
            raise self.failed(f"cannot {doing}: the answer is longer than {limit} bytes")
        return result.stdout

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[str]:
        """A directory inside that only `user` can enter; gone at the end, whatever happens."""
        path = f"/tmp/.ramify-state-{secrets.token_hex(12)}"
        root = '"$RAMIFY_ROOT"/tmp'
        made = f"[ -d {root} ] || mkdir -p {root}; mkdir -m 700 {inside(path)}"
        await self.run(made, "make a directory for the copy")
        try:
            yield path
        finally:
            await uninterrupted(self._remove(path))

    async def _remove(self, path: str) -> None:
        try:
            await self.sandbox.exec(f"rm -rf {inside(path)}", user="root", timeout_sec=60)
        except SandboxLostError:
            return  # It went with the sandbox.

    async def take(self, remote: str, local: Path) -> None:
        """Copy a file or directory out. Raises EnvironmentFailed where it is not there."""
        try:
            await self.sandbox.download(remote, local, limits=_LIMITS)
        except FileNotFoundError:
            raise self.failed(f"{remote} has gone while it was copied") from None
        except TransferLimitError as error:
            raise self.failed(f"the state is too large to be copied: {error}") from error

    async def give(self, local: Path, remote: str) -> None:
        """Copy a file or directory in, for `user` to read."""
        owner = None if self.user == "root" else self.user
        await self.sandbox.upload(local, remote, owner=owner)

    async def expand(self, patterns: Sequence[str]) -> dict[str, Owner]:
        """Paths inside that match, in order, with their owners. A path that matches twice is one.

        `*`, `?` and `[...]` are the shell's; `**/` stands for any number of directories.
        """
        told = await self.run(
            ["/bin/sh", "-c", _EXPAND, "sh", *patterns], f"expand {' '.join(patterns)}"
        )
        root, *rest = told.split(b"\0")
        found: dict[str, Owner] = {}
        for path, about in zip(rest[0::2], rest[1::2], strict=False):
            numbers = about.split()
            if len(numbers) != 3 or not path.startswith(root):
                continue  # It has gone between being found and being looked at.
            uid, gid, mode = numbers
            name = path[len(root) :].decode("utf-8", "surrogateescape")
            found[name] = Owner(int(uid), int(gid), mode.decode("ascii", "replace"))
        return dict(sorted(found.items()))

    async def own(self, owners: Mapping[str, Owner]) -> None:
        """Give paths their owners and modes, links not followed."""
        lines = [
            f"chown -h {owner.uid}:{owner.gid} {inside(path)}; chmod {owner.mode} {inside(path)}"
            for path, owner in owners.items()
        ]
        if lines:
            await self.run("set -e\n" + "\n".join(lines), "give the files their owners")


def tail(result: ExecResult) -> str:
    """The end of what a failed command said, and how it ended."""
    said = (result.stderr or result.stdout)[-1000:].decode(errors="replace").strip()
    return said or f"exit code {result.exit_code}"


def empty(folder: Path) -> None:
    """Make `folder` an empty directory of the host."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
