"""The agent that follows a file of commands: deterministic, for tests and demonstrations."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ramify.contracts.agent import AgentCapabilities, Session, StopReason
from ramify.contracts.context import Context
from ramify.contracts.errors import AgentError, ConfigError
from ramify.contracts.sandbox import MIB, Sandbox
from ramify.planes.agent.session import (
    Transcript,
    TurnSession,
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

    async def connect(self, sandbox: Sandbox, ctx: Context, role: str = "agent") -> Session:
        """Open a session."""
        transcript = Transcript(ctx, role)

        async def turn(text: str, index: int) -> StopReason:
            for command in self._commands:
                if command.prompt == index:
                    await _run(sandbox, ctx, command, transcript)
            return StopReason.END_TURN

        return TurnSession(turn, transcript)


async def _run(
    sandbox: Sandbox, ctx: Context, command: ScriptedCommand, transcript: Transcript
) -> None:
    user = agent_user(ctx)
    started_at = ctx.clock.now()
    result = await sandbox.exec(
        command.command,
        user=user,
        cwd=ctx.workdir,
        timeout_sec=command.timeout_sec,
        output_limit=MIB,
    )
    await transcript.acted(command.command, observe(result, started_at))
    if command.expect_exit is not None and result.exit_code != command.expect_exit:
        raise AgentError(
            f"{command.command!r} exited {result.exit_code}, not {command.expect_exit}: "
            f"{tail_text(result)}"
        )


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
