"""The tools of the chat agent: bash, read, write and edit, inside the sandbox.

Everything is done by programs of the inside, as the task's agent user, so that a tool can do no
more than a command could. Nothing of the host is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ramify.contracts.inside import shell_line
from ramify.contracts.sandbox import MIB, ExecResult, Sandbox
from ramify.planes.agent.tools import Tool, ToolError, clipped

_ENV: Mapping[str, str] = {"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat"}
_FILE_SEC = 30.0
_MAX_EDIT = 4 * MIB
_MAX_COMMAND = 60_000
"""Bytes of a command line; sandboxes take little more."""

# A path as the provider that does not isolate has it: absolute ones below its own root.
_PATH = 'case "$1" in "$RAMIFY_ROOT"/*) f=$1;; /*) f=$RAMIFY_ROOT$1;; *) f=./$1;; esac; '
_REGULAR = (
    _PATH + '[ -e "$f" ] || { echo "no such file" >&2; exit 1; }; '
    '[ -f "$f" ] || { echo "not a regular file" >&2; exit 1; }; '
)
_READ = _REGULAR + 'grep -c "" < "$f"; tail -n "+$2" "$f" | head -n "$3"'
_WHOLE = _REGULAR + 'cat "$f"'
_WRITE = _PATH + 'd=${f%/*}; [ "$d" = "$f" ] || mkdir -p "$d" && cat > "$f"'


@dataclass(frozen=True, slots=True)
class Box:
    """The sandbox as tools use it.

    Attributes:
        sandbox: where they run.
        user: as whom.
        cwd: the work directory.
        timeout_sec: time of a command that asks for none; ten times that is the most it can ask
            for.
        output_limit: characters of an answer.
    """

    sandbox: Sandbox
    user: str | None
    cwd: str
    timeout_sec: float = 120.0
    output_limit: int = 16_000

    async def script(
        self, script: str, *words: str, stdin: bytes | None = None, output_limit: int = MIB
    ) -> ExecResult:
        """Run a `/bin/sh` script on a file, `$1`. Raises ToolError: what it said on failing."""
        if not words[0] or "\0" in words[0]:
            raise ToolError(f"{words[0]!r} is no path")
        result = await self.sandbox.exec(
            ["/bin/sh", "-c", script, "sh", *words],
            user=self.user,
            cwd=self.cwd,
            stdin=stdin,
            timeout_sec=_FILE_SEC,
            output_limit=output_limit,
        )
        if result.timed_out:
            raise ToolError(f"{words[0]}: timed out after {_FILE_SEC:g} s")
        if not result.ok:
            said = result.stderr.decode(errors="replace").strip() or f"exit code {result.exit_code}"
            raise ToolError(f"{words[0]}: {clipped(said, 500)}")
        return result


_Seconds = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


async def bash(command: str, box: Box, timeout_sec: _Seconds | None = None) -> str:
    """Run a shell command and return its output and exit code.

    Every call is a new shell in the work directory: `cd` and variables do not carry over, files
    and background processes do.

    Args:
        command: The command line.
        timeout_sec: Seconds after which it is killed.
    """
    if "\0" in command:
        raise ToolError("a command holds no NUL characters")
    if len(command.encode()) > _MAX_COMMAND:
        raise ToolError(
            f"the command is longer than {_MAX_COMMAND} bytes; write its data to a file first"
        )
    seconds = min(timeout_sec or box.timeout_sec, 10 * box.timeout_sec)
    result = await box.sandbox.exec(
        f"exec 2>&1; {shell_line(['bash', '-c', command])}",
        user=box.user,
        cwd=box.cwd,
        env=_ENV,
        timeout_sec=seconds,
        output_limit=MIB,
    )
    said = (result.stdout + result.stderr).decode(errors="replace")
    dropped = result.stdout_dropped + result.stderr_dropped
    notes: list[str] = []
    if result.timed_out:
        notes.append(f"[timed out after {seconds:g} s; the command was killed]")
    elif result.exit_code:
        notes.append(f"[exit code {result.exit_code}]")
    if result.oom_killed:
        notes.append("[out of memory]")
    text = clipped(said, box.output_limit, dropped)
    if notes and text and not text.endswith("\n"):
        text += "\n"
    return text + "\n".join(notes) or "[no output, exit code 0]"


async def read(path: str, box: Box, offset: _Count = 1, limit: _Count = 2000) -> str:
    """Read lines of a text file.

    Args:
        path: Absolute, or relative to the work directory.
        offset: The first line, counted from 1.
        limit: How many lines at most.
    """
    result = await box.script(_READ, path, str(offset), str(limit))
    count, _, data = result.stdout.partition(b"\n")
    total = int(count.strip()) if count.strip().isdigit() else 0
    text = clipped(data.decode(errors="replace"), box.output_limit, result.stdout_dropped)
    last = offset + limit - 1
    if total > last:
        return f"{text}[lines {offset} to {last} of {total}; go on with offset={last + 1}]"
    return text or f"[nothing from line {offset} on; the file has {total} lines]"


async def write(path: str, content: str, box: Box) -> str:
    """Write a file, in place of what it held; missing directories are made.

    Args:
        path: Absolute, or relative to the work directory.
        content: The file's whole content.
    """
    data = content.encode()
    await box.script(_WRITE, path, stdin=data)
    return f"wrote {len(data)} bytes to {path}"


async def edit(path: str, old: str, new: str, box: Box, replace_all: bool = False) -> str:
    """Replace a text in a file.

    Args:
        path: Absolute, or relative to the work directory.
        old: The text to replace, exactly as it stands in the file; it must occur once.
        new: What takes its place.
        replace_all: Replace every occurrence.
    """
    result = await box.script(_WHOLE, path, output_limit=2 * _MAX_EDIT)
    if len(result.stdout) > _MAX_EDIT or result.stdout_dropped:
        raise ToolError(f"{path}: larger than {_MAX_EDIT} bytes; change it with a command")
    before, wanted = result.stdout, old.encode()
    found = before.count(wanted) if wanted else 0
    if found == 0:
        raise ToolError(f"{path}: `old` does not occur in the file")
    if found > 1 and not replace_all:
        raise ToolError(f"{path}: `old` occurs {found} times; give more of its surroundings")
    await box.script(_WRITE, path, stdin=before.replace(wanted, new.encode()))
    return f"replaced {found} in {path}"


def sandbox_tools() -> dict[str, Tool]:
    """Name → tool. A tool's value `box` is a Box."""
    injected = {Box: "box"}
    tools = [
        Tool.of(bash, injected),
        Tool.of(read, injected, safe=True),
        Tool.of(write, injected),
        Tool.of(edit, injected),
    ]
    return {tool.spec.name: tool for tool in tools}
