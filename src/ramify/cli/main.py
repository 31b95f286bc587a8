"""`ramify`: finds the command, and turns errors into one clear line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import cast

import click

from ramify.contracts.errors import InfraError, RamifyError, UsageError

FAILED, USAGE, INFRASTRUCTURE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes; 0 is success."""

COMMANDS = {
    "run": "Run an agent on tasks and score the result.",
    "verify": "Run a repository's own build and tests in a sandbox, as its agent.yaml says.",
    "tree": "Print a rollout's tree.",
    "score": "Score what was recorded, without running agents.",
    "export": "Write a finished job in another format.",
    "tasks": "Check, list and make tasks.",
    "env": "Check a world's manifest, or start a world.",
    "agents": "List the agents that can be run.",
    "images": "List, import and remove the images of local sandboxes.",
    "doctor": "What this machine can do, and why.",
}


class _LazyGroup(click.Group):
    """Loads a command's module when the command is asked for, so that `--version` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"ramify.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"auto_envvar_prefix": "RAMIFY"})
@click.version_option(version("ramify"), prog_name="ramify", message="%(prog)s %(version)s")
def cli() -> None:
    """Stateful environments into scored, training-ready trajectory trees.

    Every option can be given as an environment variable: RAMIFY_<COMMAND>_<OPTION>.
    """


def main() -> None:
    """Entry point of the program."""
    _read_dotenv(Path(".env"))
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = USAGE
    except click.UsageError as error:
        program = error.ctx.command_path if error.ctx else "ramify"
        code = _complain(f"{error.format_message()} (see: {program} --help)", USAGE)
    except click.ClickException as error:
        code = _complain(error.format_message(), USAGE)
    except (click.Abort, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one must not break the telling
        code = _complain("interrupted", INTERRUPTED)
    except Exception as error:
        code = _code_of(error)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the exit code is settled
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_output()
    sys.exit(code if isinstance(code, int) else 0)


def _code_of(error: Exception) -> int:
    """Say in one line what went wrong; the exit code for it."""
    while isinstance(error, ExceptionGroup):  # of several at once the first is told
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    match error:
        case UsageError():
            return _complain(str(error), USAGE)
        case InfraError():
            return _complain(str(error), INFRASTRUCTURE)
        case RamifyError():
            return _complain(str(error), FAILED)
        case BrokenPipeError():
            _let_go_of_output()
            return FAILED
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return _complain(f"{where}{error.strerror or error}", INFRASTRUCTURE)
        case _ if os.environ.get("RAMIFY_TRACEBACK"):
            raise error
        case _:
            what = f"{type(error).__name__}: {error}"
            hint = "RAMIFY_TRACEBACK=1 shows where"
            return _complain(f"a mistake of ours or of a plug-in: {what} ({hint})", INFRASTRUCTURE)


def _let_go_of_output() -> None:
    """Nobody reads any more (`ramify tree … | head`); the interpreter must not try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split("\n"))
    click.echo(f"ramify: {line}", err=True)
    return code


def _read_dotenv(path: Path) -> None:
    """Set variables from a `.env` file that are not set already: `KEY=value`, `#` comments."""
    if not path.is_file():
        return
    for line in path.read_text(errors="replace").splitlines():
        key, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and not key.startswith("#") and key.strip().isidentifier():
            text = value.strip()
            if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
                text = text[1:-1]
            os.environ.setdefault(key.strip(), text)


if __name__ == "__main__":
    main()
