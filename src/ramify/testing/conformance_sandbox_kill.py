"""Checks that nothing outlives its time: the ways in which a command tries to stay.

Survivors are looked for from inside, by a marker on their command line, so that the checks say
nothing about how a provider kills.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ramify.contracts.errors import SandboxLostError
from ramify.testing.check import Check, check, equal, require, within
from ramify.testing.sandbox_bench import (
    SandboxBench,
    alive,
    mark,
    need_program,
    sh,
    until_alive,
)

TIMEOUT_SEC = 0.5

_TIMED_OUT = {
    "plain": "sleep {m}",
    "child_of_a_shell": "sh -c 'sleep {m}; :'; :",
    "term_ignored": "trap '' TERM INT HUP QUIT; while :; do sleep {m}; done",
    "setsid_holds_stdout": "setsid sleep {m} & sleep {m}",
    "double_fork": "( ( setsid sleep {m} </dev/null >/dev/null 2>&1 & ) & ); sleep {m}",
    "stopped_tree": "sleep {m} & kill -STOP $!; sh -c 'kill -STOP $$; : {m}' & kill -STOP $$",
    "empty_environment": "env -i setsid sh -c 'trap \"\" TERM; sleep {m}; :' & sleep {m}",
    "forks_while_killed": "while :; do setsid sleep {m} & sleep 0.01; done",
}
_LEFT_OVER = {
    "daemon_holds_stdout": "setsid sleep {m} & exit 0",
    "double_fork_exits_0": "( ( setsid sleep {m} </dev/null >/dev/null 2>&1 & ) & ); exit 0",
    "term_ignored_and_stopped": (
        "(trap '' TERM; setsid sh -c 'sleep {m} & kill -STOP $!; kill -STOP $$; : {m}') & exit 0"
    ),
}


def _timed_out(name: str, script: str) -> Check[SandboxBench]:
    async def body(bench: SandboxBench) -> None:
        marker = mark()
        async with bench.sandbox() as sandbox:
            await need_program(sandbox, "setsid")
            with within(TIMEOUT_SEC + 1, f"a timeout of {TIMEOUT_SEC} s"):
                result = await sandbox.exec(script.format(m=marker), timeout_sec=TIMEOUT_SEC)
            equal((result.timed_out, result.exit_code), (True, 124), "timed_out and exit_code")
            await until_alive(sandbox, marker, 0, seconds=0.5)

    sentence = "On timeout everything the command started is killed, in whatever session it is."
    return Check(f"timeout_kills_{name}", sentence, (), body)


def _left_over(name: str, script: str) -> Check[SandboxBench]:
    async def body(bench: SandboxBench) -> None:
        marker = mark()
        async with bench.sandbox() as sandbox:
            await need_program(sandbox, "setsid")
            with within(1.5, "exec with kill_leftovers"):
                result = await sandbox.exec(
                    script.format(m=marker), kill_leftovers=True, timeout_sec=5
                )
            equal((result.timed_out, result.exit_code), (False, 0), "timed_out and exit_code")
            await until_alive(sandbox, marker, 0, seconds=0.5)

    sentence = "Processes left in the background go on unless kill_leftovers."
    return Check(f"kill_leftovers_kills_{name}", sentence, (), body)


@check()
async def _timeout_keeps_output(bench: SandboxBench) -> None:
    """A command that ran out of time still returns what it wrote."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("echo before; sleep 20; echo after", timeout_sec=0.4)
        equal((result.stdout, result.exit_code), (b"before\n", 124), "result")
        require(0.35 <= result.duration_sec < 1.5, f"duration_sec is {result.duration_sec}")


@check()
async def _timeout_spares_others(bench: SandboxBench) -> None:
    """A timeout kills what that command started, and nothing else."""
    background, streamed, doomed = mark(), mark(), mark()
    async with bench.sandbox() as sandbox:
        await sh(sandbox, f"sleep {background} >/dev/null 2>&1 </dev/null & :")
        process = await sandbox.spawn(["sleep", streamed])
        other = asyncio.create_task(sandbox.exec("sleep 0.9; echo whole"))
        await sandbox.exec(f"sleep {doomed} & sleep {doomed}", timeout_sec=0.3)
        await until_alive(sandbox, doomed, 0, seconds=0.5)
        equal(await alive(sandbox, background), 1, "background processes of another command")
        equal(await alive(sandbox, streamed), 1, "spawned processes")
        equal((await other).stdout, b"whole\n", "output of a command beside it")
        await process.aclose()


@check("isolation")
async def _kill_everything_from_inside(bench: SandboxBench) -> None:
    """Killing every process from inside ends them; the sandbox answers or is lost, never hangs."""
    from_inside = "kill -9 -1"
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn(["sleep", mark()])
        with within(5, "kill -9 -1 and the command after it"):
            for command in (from_inside, "echo again"):
                try:
                    await sandbox.exec(command, timeout_sec=2)
                except SandboxLostError:
                    break
            with suppress(SandboxLostError):  # the whole sandbox going is an allowed answer
                equal(await process.wait(), 137, "exit code of a killed neighbour")
            await process.aclose()


KILL_CHECKS = (
    *(_timed_out(name, script) for name, script in _TIMED_OUT.items()),
    *(_left_over(name, script) for name, script in _LEFT_OVER.items()),
    _timeout_keeps_output,
    _timeout_spares_others,
    _kill_everything_from_inside,
)
"""Checks of timeouts, kill_leftovers and who is spared."""
