"""The agent that follows a file of commands: deterministic, for tests and demonstrations."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ramify.contracts.agent import AgentCapabilities, Checkpointable, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import MIB, Sandbox
from ramify.planes.agent.session import (
    Transcript,
    TurnSession,
    Unaided,
    agent_user,
    observe,
    tail_text,
)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class ScriptedCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One command. `prompt` is the index of the prompt on which it runs.

    With `expect_exit`, another exit code ends the run with an AgentError; without, any will do.
    """

    command: Annotated[str, msgspec.Meta(min_length=1)]
    timeout_sec: Annotated[float, msgspec.Meta(gt=0)] | None = None
    expect_exit: int | None = None
    prompt: Annotated[int, msgspec.Meta(ge=0)] = 0


class ScriptedAgent:
    """Runs the commands of a file in order, each a step.

    Args:
        path: the file. `.json`: a list of objects `{command, timeout_sec, expect_exit, prompt}`;
            `.toml`: the same as `[[commands]]` tables; anything else: one shell command per
            line, blank lines and lines that begin with `#` left out.

    Raises:
        ConfigError: the file cannot be read or is wrong; names the file and the line.
    """

    name = "scripted"

    def __init__(self, path: str | Path) -> None:
        self._commands = _load(Path(path))

    def capabilities(self) -> AgentCapabilities:
        """It needs no model; commands can be given for later prompts."""
        return AgentCapabilities(multi_prompt=True, mcp=True, skills=True)

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Checkpointable:
        """Open a session."""
        transcript = Transcript(ctx, role)
        return TurnSession(_Runner(sandbox, ctx, transcript, _Place(self._commands)), transcript)


class _Runner:
    """Runs the commands of a prompt one by one."""

    def __init__(
        self, sandbox: Sandbox, ctx: Context, transcript: Transcript, place: _Place
    ) -> None:
        self._sandbox, self._ctx, self._transcript, self._place = sandbox, ctx, transcript, place

    def begin(self, text: str, index: int) -> None:
        self._place = _Place(self._place.commands, index)

    async def advance(self) -> None:
        if (command := self._place.command()) is None:
            self._transcript.ends(StopReason.END_TURN)
            return
        started_at = self._ctx.clock.now()
        result = await self._sandbox.exec(
            command.command,
            user=agent_user(self._ctx),
            cwd=self._ctx.workdir,
            timeout_sec=command.timeout_sec,
            output_limit=MIB,
        )
        self._place = replace(self._place, done=self._place.done + 1)
        if command.expect_exit is not None and result.exit_code != command.expect_exit:
            self._transcript.fails(
                f"{command.command!r} exited {result.exit_code}, not {command.expect_exit}: "
                f"{tail_text(result)}"
            )
        await self._transcript.acted(command.command, observe(result, started_at))

    def state(self) -> _Place:
        return self._place

    async def aclose(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Place(Unaided):
    """A place in the commands: how many of those of a prompt are done."""

    commands: tuple[ScriptedCommand, ...]
    prompt: int = 0
    done: int = 0

    def command(self) -> ScriptedCommand | None:
        """The command that comes next in the turn."""
        mine = [command for command in self.commands if command.prompt == self.prompt]
        return mine[self.done] if self.done < len(mine) else None

    async def restore(self, sandbox: Sandbox, ctx: Context, transcript: Transcript) -> _Runner:
        return _Runner(sandbox, ctx, transcript, self)


def _load(path: Path) -> tuple[ScriptedCommand, ...]:
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError("is not UTF-8", file=str(path), field=f"line {line}") from None
    match path.suffix:
        case ".json":
            return _checked(_json(text, path), path)
        case ".toml":
            return _checked(_toml(text, path), path)
        case _:
            return _lines(text, path)


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(error.msg, file=str(path), field=f"line {error.lineno}") from None


def _toml(text: str, path: Path) -> Any:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(error), file=str(path)) from None
    if unknown := sorted(document.keys() - {"commands"}):
        raise ConfigError("unknown key; write [[commands]] tables", str(path), unknown[0])
    return document.get("commands", [])


def _checked(entries: Any, path: Path) -> tuple[ScriptedCommand, ...]:
    try:
        return msgspec.convert(entries, tuple[ScriptedCommand, ...])
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), file=str(path)) from None


def _lines(text: str, path: Path) -> tuple[ScriptedCommand, ...]:
    commands: list[ScriptedCommand] = []
    for number, line in enumerate(text.splitlines(), start=1):
        command = line.strip()
        if not command or command.startswith("#"):
            continue
        where = f"line {number}"
        if _CONTROL.search(command):
            raise ConfigError("holds a control character", file=str(path), field=where)
        if (len(command) - len(command.rstrip("\\"))) % 2:
            raise ConfigError(
                "a command must stand on one line; for longer ones use a .json or .toml file",
                file=str(path),
                field=where,
            )
        commands.append(ScriptedCommand(command))
    return tuple(commands)
