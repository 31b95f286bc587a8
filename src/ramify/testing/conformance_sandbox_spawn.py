"""Checks of `Sandbox.spawn` and `Process`: streams, backpressure, signals, terminals, clean-up."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ramify.contracts.errors import SandboxError, SandboxLostError
from ramify.contracts.process import (
    Process,
    PtySize,
)
from ramify.contracts.sandbox import (
    MIB,
    Sandbox,
)
from ramify.testing.check import CheckSkipped, ConformanceError, check, equal, raises, require
from ramify.testing.sandbox_bench import (
    SandboxBench,
    alive,
    engine_rss,
    mark,
    need_program,
    need_user,
    root_of,
    sh,
    until_alive,
)


@asynccontextmanager
async def _spawned(
    bench: SandboxBench, command: str | Sequence[str], pty: PtySize | None = None
) -> AsyncGenerator[tuple[Sandbox, Process]]:
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn(command, pty=pty)
        try:
            yield sandbox, process
        finally:
            await process.aclose()


async def _read_all(process: Process) -> bytes:
    parts: list[bytes] = []
    while data := await process.read():
        parts.append(data)
    return b"".join(parts)


async def _read_until(process: Process, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        more = await process.read()
        if not more:
            raise ConformanceError(f"the output ended before {wanted!r}: {data[-300:]!r}")
        data += more
    return data


async def _wait(process: Process, seconds: float = 3.0) -> int:
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError:
        raise ConformanceError(f"wait() did not return within {seconds:g} s") from None


@check()
async def _streams_are_apart(bench: SandboxBench) -> None:
    """read gives standard output, read_err standard error; b"" marks the end of each."""
    async with _spawned(bench, "printf out; printf err >&2; exit 3") as (_, process):
        equal(await _read_all(process), b"out", "stdout")
        equal(await process.read_err(), b"err", "stderr")
        equal(await process.read_err(), b"", "the end of stderr")
        equal(await process.read(), b"", "the end of stdout, read again")
        equal(await _wait(process), 3, "exit code")


@check()
async def _conversation(bench: SandboxBench) -> None:
    """write and read work turn by turn while the process lives."""
    script = 'while read -r line; do echo "got $line"; done; echo bye; exit 4'
    async with _spawned(bench, script) as (_, process):
        for number in range(5):
            await process.write(f"{number}\n".encode())
            equal(await _read_until(process, b"\n"), f"got {number}\n".encode(), "answer")
        await process.close_stdin()
        await process.close_stdin()
        equal(await _read_all(process), b"bye\n", "what follows the end of input")
        equal(await _wait(process), 4, "exit code")


@check()
async def _big_streams_are_whole(bench: SandboxBench) -> None:
    """Reads never lose bytes, in either direction at once."""
    data = hashlib.shake_256(b"spawn").digest(4 * MIB)

    async def feed(process: Process) -> None:
        for start in range(0, len(data), 100_000):
            await process.write(data[start : start + 100_000])
        await process.close_stdin()

    async with _spawned(bench, ["cat"]) as (_, process):
        async with asyncio.TaskGroup() as group:
            group.create_task(feed(process))
            reader = group.create_task(_read_all(process))
        require(reader.result() == data, f"{len(reader.result())} of {len(data)} bytes, or changed")
        equal(await _wait(process), 0, "exit code")


@check()
async def _read_honours_max_bytes(bench: SandboxBench) -> None:
    """read returns at most max_bytes and keeps the rest for the next read."""
    async with _spawned(bench, "printf 0123456789") as (_, process):
        await _wait(process)
        parts = [await process.read(4) for _ in range(10)]
        equal(b"".join(parts), b"0123456789", "all reads together")
        require(all(len(part) <= 4 for part in parts), f"reads of at most 4 gave {parts}")


@check()
async def _write_after_close_is_broken_pipe(bench: SandboxBench) -> None:
    """write raises BrokenPipeError when the process closed its standard input."""
    async with _spawned(bench, "exec <&-; echo closed; sleep 5") as (_, process):
        await _read_until(process, b"closed\n")
        with raises(BrokenPipeError, doing="writing to a closed standard input"):
            for _ in range(40):
                await process.write(bytes(4096))
                await asyncio.sleep(0.02)


@check()
async def _unread_output_holds_the_process(bench: SandboxBench) -> None:
    """Reads apply backpressure: a fast writer is held, the engine's memory does not grow."""
    async with _spawned(bench, ["head", "-c", "256M", "/dev/zero"]) as (_, process):
        await process.read(1)
        before = engine_rss()
        try:
            async with asyncio.timeout(0.8):
                await process.wait()
        except TimeoutError:
            grown = engine_rss() - before
            require(grown < 24 * MIB, f"unread output grew the engine by {grown // MIB} MiB")
        else:
            raise ConformanceError("256 MiB were taken from the process although nobody read them")


@check()
async def _wait_needs_no_reader(bench: SandboxBench) -> None:
    """wait depends on the process, and what it wrote can be read afterwards."""
    async with _spawned(bench, "printf kept; printf also >&2; exit 5") as (_, process):
        equal(await _wait(process), 5, "exit code")
        equal(await _read_all(process), b"kept", "stdout after the end")
        equal(await process.read_err(), b"also", "stderr after the end")
        equal(await _wait(process), 5, "exit code, asked again")


@check()
async def _wait_ignores_held_pipes(bench: SandboxBench) -> None:
    """wait never depends on the pipes: a child that holds them does not delay it."""
    async with _spawned(bench, f"sleep {mark()} & exit 7") as (_, process):
        equal(await _wait(process, 1.5), 7, "exit code")


@check()
async def _signal_reaches_the_command(bench: SandboxBench) -> None:
    """signal sends a signal that the command can handle."""
    script = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    async with _spawned(bench, script) as (_, process):
        await _read_until(process, b"ready\n")
        await process.signal(signal.SIGUSR1)
        equal(await _wait(process), 9, "exit code")
        equal(await _read_all(process), b"caught\n", "output of the handler")


@check()
async def _signal_reaches_the_group(bench: SandboxBench) -> None:
    """signal goes to the command's process group; wait gives 128+n."""
    marker = mark()
    async with _spawned(bench, f"sleep {marker} & sleep {marker}; exit 1") as (sandbox, process):
        await until_alive(sandbox, marker, 3)
        await process.signal(signal.SIGTERM)
        equal(await _wait(process), 128 + signal.SIGTERM, "exit code")
        await until_alive(sandbox, marker, 0, seconds=1)


@check()
async def _aclose_kills_descendants(bench: SandboxBench) -> None:
    """After aclose nothing that the command started is alive, whatever session it moved to."""
    marker = mark()
    script = (
        f"setsid sleep {marker} & (trap '' TERM; sleep {marker}) & "
        f"( ( env -i setsid sleep {marker} </dev/null >/dev/null 2>&1 & ) & ); "
        f"sleep {marker} & kill -STOP $!; echo up; sleep {marker}"
    )
    async with bench.sandbox() as sandbox:
        await need_program(sandbox, "setsid")
        process = await sandbox.spawn(script)
        await _read_until(process, b"up\n")
        async with asyncio.timeout(3):
            await process.aclose()
            await process.aclose()
        equal(await alive(sandbox, marker), 0, "processes alive after aclose")
        equal((await sandbox.exec("echo on")).stdout, b"on\n", "the sandbox after aclose")


@check()
async def _aclose_kills_leftovers_of_an_ended_command(bench: SandboxBench) -> None:
    """aclose also ends what an already finished command left in the background."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn(f"sleep {marker} & exit 0")
        equal(await _wait(process), 0, "exit code")
        await process.aclose()
        await until_alive(sandbox, marker, 0, seconds=0.5)


@check()
async def _pid_is_the_inside_view(bench: SandboxBench) -> None:
    """pid is the process id as the inside sees it."""
    async with _spawned(bench, "echo $$; sleep 5") as (_, process):
        equal(int(await _read_until(process, b"\n")), process.pid, "pid")


@check()
async def _what_cannot_start_is_refused(bench: SandboxBench) -> None:
    """spawn raises SandboxError if the command cannot be started."""
    async with bench.sandbox() as sandbox:
        with raises(SandboxError, doing="spawning a program that does not exist"):
            await sandbox.spawn(["/no/such/program"])
        with raises(SandboxError, doing="spawning in a directory that does not exist"):
            await sandbox.spawn(["true"], cwd="/no/such/directory")
        with raises(SandboxError, doing="spawning as a user that does not exist"):
            await sandbox.spawn(["true"], user="no-such-user-here")
        process = await sandbox.spawn(["true"])
        equal(await _wait(process), 0, "exit code of the next spawn")
        await process.aclose()


@check()
async def _env_and_cwd(bench: SandboxBench) -> None:
    """spawn takes env and cwd as exec does."""
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn("pwd; echo $CONF", cwd="/tmp", env={"CONF": "x y"})
        expected = f"{await root_of(sandbox)}/tmp\nx y\n"
        equal((await _read_all(process)).decode(), expected, "output")
        await process.aclose()


@check()
async def _user(bench: SandboxBench) -> None:
    """spawn takes a user as exec does."""
    async with bench.sandbox() as sandbox:
        await need_user(sandbox, "nobody")
        if await sh(sandbox, "id -u") != "0":
            raise CheckSkipped("the default user is not root, so it cannot become another")
        process = await sandbox.spawn("id -un; id -G", user="nobody")
        found = (await _read_all(process)).decode().split()
        await process.aclose()
        require(found[0] == "nobody" and "0" not in found[1:], f"user and groups: {found}")


@check()
async def _many_at_once(bench: SandboxBench) -> None:
    """Many processes run side by side, each with its own streams."""

    async def one(sandbox: Sandbox, number: int) -> None:
        process = await sandbox.spawn(["cat"])
        await process.write(str(number).encode())
        await process.close_stdin()
        equal(await _read_all(process), str(number).encode(), f"output of process {number}")
        await process.aclose()

    async with bench.sandbox() as sandbox:
        async with asyncio.TaskGroup() as group:
            for number in range(15):
                group.create_task(one(sandbox, number))


@check()
async def _teardown_ends_wait(bench: SandboxBench) -> None:
    """wait raises SandboxLostError if the sandbox ends first."""
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn(["sleep", mark()])
        waiting = asyncio.create_task(process.wait())
        await asyncio.sleep(0.05)
        await sandbox.teardown()
        with raises(SandboxLostError, doing="wait() of a sandbox that was torn down"):
            async with asyncio.timeout(3):
                await waiting
        await process.aclose()


@check()
async def _pty_is_a_terminal(bench: SandboxBench) -> None:
    """With `pty` all three streams are one terminal of the given size; read_err ends at once."""
    script = "test -t 0 && test -t 1 && test -t 2 && stty size && tty"
    async with _spawned(bench, script, PtySize(33, 101)) as (_, process):
        equal(await process.read_err(), b"", "read_err under a terminal")
        output = await _read_all(process)
        require(b"33 101" in output, f"`stty size` must print 33 101: {output!r}")
        require(b"/dev/" in output, f"`tty` must name a device: {output!r}")
        equal(await _wait(process), 0, "exit code")


@check()
async def _pty_resize(bench: SandboxBench) -> None:
    """resize changes the terminal's size."""
    script = "stty -echo; echo up; read x; stty size"
    async with _spawned(bench, script, PtySize(24, 80)) as (_, process):
        await _read_until(process, b"up")
        await process.resize(PtySize(50, 132))
        await process.write(b"\n")
        require(b"50 132" in await _read_all(process), "`stty size` must print the new size")


@check()
async def _pty_echoes(bench: SandboxBench) -> None:
    """A terminal echoes what is typed, and the program reads it line by line."""
    script = 'echo up; read x; echo "line=$x"'
    async with _spawned(bench, script, PtySize()) as (_, process):
        await _read_until(process, b"up\r\n")
        await process.write(b"typed\n")
        equal(await _read_all(process), b"typed\r\nline=typed\r\n", "echo and answer")


@check()
async def _pty_is_the_controlling_terminal(bench: SandboxBench) -> None:
    """Ctrl-C typed at the terminal interrupts the foreground command."""
    async with _spawned(bench, "echo up; exec sleep 20", PtySize()) as (_, process):
        await _read_until(process, b"up")
        await process.write(b"\x03")
        equal(await _wait(process), 130, "exit code after Ctrl-C")


@check()
async def _pty_end_of_input(bench: SandboxBench) -> None:
    """close_stdin sends the end of file to a terminal, too."""
    async with _spawned(bench, "echo up; cat; echo end", PtySize()) as (_, process):
        await _read_until(process, b"up")
        await process.close_stdin()
        await _read_until(process, b"end")
        equal(await _wait(process), 0, "exit code")


@check()
async def _resize_without_terminal(bench: SandboxBench) -> None:
    """resize has no effect without a terminal."""
    async with _spawned(bench, ["cat"]) as (_, process):
        await process.resize(PtySize(10, 10))
        await process.close_stdin()
        equal(await _wait(process), 0, "exit code")


SPAWN_CHECKS = (
    _streams_are_apart,
    _conversation,
    _big_streams_are_whole,
    _read_honours_max_bytes,
    _write_after_close_is_broken_pipe,
    _unread_output_holds_the_process,
    _wait_needs_no_reader,
    _wait_ignores_held_pipes,
    _signal_reaches_the_command,
    _signal_reaches_the_group,
    _aclose_kills_descendants,
    _aclose_kills_leftovers_of_an_ended_command,
    _pid_is_the_inside_view,
    _what_cannot_start_is_refused,
    _env_and_cwd,
    _user,
    _many_at_once,
    _teardown_ends_wait,
    _pty_is_a_terminal,
    _pty_resize,
    _pty_echoes,
    _pty_is_the_controlling_terminal,
    _pty_end_of_input,
    _resize_without_terminal,
)
"""Checks of `Sandbox.spawn` and `Process`."""
