"""Checks of `Sandbox.exec`: results, input and output, identity, and many at once."""

from __future__ import annotations

import asyncio
import hashlib

import msgspec

from ramify.contracts.sandbox import MIB, Sandbox
from ramify.testing.check import CheckSkipped, check, equal, require, within
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

ALL_BYTES = bytes(range(256))


@check()
async def _exit_code_and_ok(bench: SandboxBench) -> None:
    """exec runs a command to its end; exit_code is the command's own."""
    async with bench.sandbox() as sandbox:
        for code in (0, 1, 3, 255):
            result = await sandbox.exec(f"exit {code}")
            equal(result.exit_code, code, f"exit code of `exit {code}`")
            equal(result.ok, code == 0, f"ok after exit code {code}")
            equal((result.signal, result.timed_out, result.oom_killed), (None, False, False), "why")


@check()
async def _stdout_and_stderr_are_apart(bench: SandboxBench) -> None:
    """stdout and stderr are returned separately and whole."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("printf out; printf err >&2; printf more")
        equal((result.stdout, result.stderr), (b"outmore", b"err"), "streams")
        equal((result.stdout_dropped, result.stderr_dropped), (0, 0), "bytes dropped")


@check()
async def _string_goes_through_the_shell(bench: SandboxBench) -> None:
    """A string is given to /bin/sh -c."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("a='x y'; printf '%s' \"$a\" | tr x z; exit 4")
        equal((result.stdout, result.exit_code), (b"z y", 4), "result")


@check()
async def _argv_does_not(bench: SandboxBench) -> None:
    """A sequence is the argument vector itself: no shell reads it."""
    async with bench.sandbox() as sandbox:
        arguments = ["a b", "$HOME;exit 3", "", "*", "line\nbreak", "-n", "żółw", "'\""]
        result = await sandbox.exec(["printf", "%s|", *arguments])
        equal(result.stdout.decode(), "".join(f"{a}|" for a in arguments), "arguments")


@check()
async def _missing_program_is_127(bench: SandboxBench) -> None:
    """A command that is not found gives exit code 127, with the reason on stderr."""
    async with bench.sandbox() as sandbox:
        for command in (["/no/such/program"], ["no-such-program-here"], "no-such-program-here"):
            result = await sandbox.exec(command)
            equal(result.exit_code, 127, f"exit code of {command!r}")
            require(bool(result.stderr.strip()), f"{command!r} must give its reason on stderr")


@check()
async def _not_executable_is_126(bench: SandboxBench) -> None:
    """A command that is not executable gives exit code 126, with the reason on stderr."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"echo 'exit 0' > {work}/plain; chmod 644 {work}/plain")
        for program in (f"{work}/plain", work):
            result = await sandbox.exec([program])
            equal(result.exit_code, 126, f"exit code of {program}")
            require(bool(result.stderr.strip()), f"{program} must give its reason on stderr")


@check()
async def _signals_are_128_plus_n(bench: SandboxBench) -> None:
    """exit_code is 128+n when killed by signal n, and `signal` names it."""
    async with bench.sandbox() as sandbox:
        for number in (9, 15, 6):
            result = await sandbox.exec(["/bin/sh", "-c", f"kill -{number} $$; sleep 5"])
            equal(
                (result.exit_code, result.signal, result.timed_out),
                (128 + number, number, False),
                f"result of signal {number}",
            )


@check()
async def _env_is_layered(bench: SandboxBench) -> None:
    """The environment is the spec's, with what exec is given on top."""
    spec = msgspec.structs.replace(bench.spec, env={"CONF_A": "spec", "CONF_B": "spec"})
    async with bench.sandbox(spec) as sandbox:
        result = await sandbox.exec(
            'printf "%s|%s|%s" "$CONF_A" "$CONF_B" "$CONF_C"',
            env={"CONF_B": "call", "CONF_C": "two\nlines = ż"},
        )
        equal(result.stdout.decode(), "spec|call|two\nlines = ż", "environment")
        equal(await sh(sandbox, "echo $CONF_B$CONF_C"), "spec", "environment of the next call")
        require(bool(await sh(sandbox, "echo $PATH")), "PATH must be set inside")


@check()
async def _cwd_and_workdir(bench: SandboxBench) -> None:
    """`workdir` is the default directory, `cwd` overrides it for one call."""
    async with bench.sandbox(msgspec.structs.replace(bench.spec, workdir="/tmp")) as sandbox:
        root = await root_of(sandbox)
        equal(await sh(sandbox, "pwd"), f"{root}/tmp", "default directory")
        result = await sandbox.exec(["pwd"], cwd="/")
        equal(result.stdout.decode(), f"{root or '/'}\n", "directory of the call")


@check()
async def _missing_cwd_is_126(bench: SandboxBench) -> None:
    """A missing cwd gives exit code 126, with the reason on stderr; nothing runs."""
    async with bench.sandbox() as sandbox:
        for cwd in ("/no/such/directory", "/etc/passwd"):
            result = await sandbox.exec("echo ran", cwd=cwd)
            equal((result.exit_code, result.stdout), (126, b""), f"result in {cwd}")
            require(bool(result.stderr.strip()), "the reason must be on stderr")


@check()
async def _user_switch(bench: SandboxBench) -> None:
    """`user` runs the command as that user: ids, groups and HOME are the user's own."""
    async with bench.sandbox() as sandbox:
        await need_user(sandbox, "nobody")
        if await sh(sandbox, "id -u") != "0":
            raise CheckSkipped("the default user is not root, so it cannot become another")
        entry = (await sh(sandbox, "grep '^nobody:' /etc/passwd")).split(":")
        script = 'id -un; id -g; id -G; echo "$HOME"'
        found = (await sh(sandbox, script, user="nobody")).splitlines()
        equal(found[0], "nobody", "user name")
        equal(found[1], entry[3], "group id")
        require("0" not in found[2].split(), f"nobody must not be in group 0: {found[2]}")
        if not await root_of(sandbox):  # else HOME is below the directory that stands for `/`
            equal(found[3], entry[5], "HOME")
        refused = await sandbox.exec("echo x > /etc/conformance-user", user="nobody")
        require(not refused.ok, "nobody must not be able to write to /etc")


@check()
async def _default_user_of_the_spec(bench: SandboxBench) -> None:
    """The spec's `user` is the default for exec."""
    async with bench.sandbox() as probe:
        await need_user(probe, "nobody")
        if await sh(probe, "id -u") != "0":
            raise CheckSkipped("the default user is not root, so it cannot become another")
    async with bench.sandbox(msgspec.structs.replace(bench.spec, user="nobody")) as sandbox:
        equal(await sh(sandbox, "id -un"), "nobody", "default user")
        equal(await sh(sandbox, "id -un", user="root"), "root", "user of one call")


@check()
async def _unknown_user_is_126(bench: SandboxBench) -> None:
    """An unknown user gives exit code 126, with the reason on stderr; nothing runs."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("echo ran", user="no-such-user-here")
        equal((result.exit_code, result.stdout), (126, b""), "result")
        require(bool(result.stderr.strip()), "the reason must be on stderr")


@check()
async def _stdin_bytes(bench: SandboxBench) -> None:
    """`stdin` reaches the command byte for byte, followed by the end of file."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec(["cat"], stdin=ALL_BYTES)
        equal(result.stdout, ALL_BYTES, "what came back through cat")
        equal((await sandbox.exec(["cat"], stdin=b"")).stdout, b"", "what came back of nothing")


@check()
async def _no_stdin_is_the_end_of_file(bench: SandboxBench) -> None:
    """Without `stdin` a command that reads gets the end of file at once."""
    async with bench.sandbox() as sandbox:
        with within(3, "a command that reads nothing"):
            result = await sandbox.exec(["cat"], timeout_sec=5)
        equal((result.exit_code, result.stdout), (0, b""), "result")


@check()
async def _large_stdin(bench: SandboxBench) -> None:
    """`stdin` of any size arrives whole, while output flows the other way."""
    data = hashlib.shake_256(b"conformance").digest(6 * MIB)
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec(["cat"], stdin=data, timeout_sec=20)
        require(result.stdout == data, f"{len(result.stdout)} of {len(data)} bytes came back right")


@check()
async def _unread_stdin_does_not_hang(bench: SandboxBench) -> None:
    """A command that does not read its input ends when its own process ends."""
    async with bench.sandbox() as sandbox:
        with within(3, "a command that ignores its input"):
            result = await sandbox.exec("exit 6", stdin=bytes(4 * MIB), timeout_sec=10)
        equal((result.exit_code, result.timed_out), (6, False), "result")


@check()
async def _binary_output(bench: SandboxBench) -> None:
    """Output is bytes: nothing decodes, translates or strips it."""
    async with bench.sandbox() as sandbox:
        octal = "".join(f"\\{byte:03o}" for byte in ALL_BYTES)
        result = await sandbox.exec(f"printf '{octal}'; printf '{octal}\\n\\n' >&2")
        equal(result.stdout, ALL_BYTES, "stdout")
        equal(result.stderr, ALL_BYTES + b"\n\n", "stderr")


@check()
async def _output_limit_keeps_head_and_tail(bench: SandboxBench) -> None:
    """Output beyond the limit keeps its head and its tail; *_dropped counts what is between."""
    whole = "".join(f"{i}\n" for i in range(1, 50_001)).encode()
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("seq 1 50000; seq 1 50000 >&2", output_limit=4096)
        for name, kept, dropped in (
            ("stdout", result.stdout, result.stdout_dropped),
            ("stderr", result.stderr, result.stderr_dropped),
        ):
            require(0 < len(kept) <= 4096, f"{name} keeps {len(kept)} bytes of a limit of 4096")
            equal(len(kept) + dropped, len(whole), f"{name}: kept and dropped together")
            require(kept.startswith(whole[:512]), f"{name} must keep its head")
            require(kept.endswith(whole[-512:]), f"{name} must keep its tail")
        exact = await sandbox.exec("printf 12345678", output_limit=8)
        equal((exact.stdout, exact.stdout_dropped), (b"12345678", 0), "output of just the limit")


@check()
async def _flood_costs_bounded_memory(bench: SandboxBench) -> None:
    """Memory used by exec is bounded by output_limit per stream."""
    async with bench.sandbox() as sandbox:
        await sandbox.exec("head -c 4M /dev/zero", output_limit=MIB)
        before = engine_rss()
        result = await sandbox.exec("head -c 96M /dev/zero", output_limit=MIB, timeout_sec=25)
        grown = engine_rss() - before
        equal(len(result.stdout) + result.stdout_dropped, 96 * MIB, "bytes kept and dropped")
        require(grown < 32 * MIB, f"96 MiB of output grew the engine by {grown // MIB} MiB")


@check()
async def _duration_is_measured(bench: SandboxBench) -> None:
    """duration_sec is how long the command ran, in seconds."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec("sleep 0.3")
        require(0.28 <= result.duration_sec < 2, f"`sleep 0.3` took {result.duration_sec} s")


@check()
async def _held_stdout_does_not_hold_exec(bench: SandboxBench) -> None:
    """exec returns when the command's own process has ended, though a child holds the pipes."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        with within(1.5, "exec with a background process that holds stdout"):
            result = await sandbox.exec(f"sleep {marker} & echo started", timeout_sec=10)
        equal((result.exit_code, result.stdout, result.timed_out), (0, b"started\n", False), "it")
        await sandbox.exec("exit 0", kill_leftovers=True)


@check()
async def _background_survives_exec(bench: SandboxBench) -> None:
    """Processes left in the background go on unless kill_leftovers."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        await sh(sandbox, f"sleep {marker} >/dev/null 2>&1 </dev/null & echo $!")
        await sandbox.exec("exit 0", kill_leftovers=True)
        await asyncio.sleep(0.1)
        equal(await alive(sandbox, marker), 1, "background processes of an earlier command")
        await sh(sandbox, f"pid=$(grep -la '[3]{marker[1:]}' /proc/[0-9]*/cmdline | cut -d/ -f3); "
                 "kill -9 $pid")  # fmt: skip


@check()
async def _kill_leftovers(bench: SandboxBench) -> None:
    """With kill_leftovers nothing that the command started outlives it."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec(f"sleep {marker} & echo started", kill_leftovers=True)
        equal((result.exit_code, result.stdout), (0, b"started\n"), "result")
        await until_alive(sandbox, marker, 0, seconds=0.5)


@check()
async def _cancelled_call_kills(bench: SandboxBench) -> None:
    """A cancelled call kills everything the command started, as a timeout does."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        call = asyncio.create_task(sandbox.exec(f"sleep {marker} & sleep {marker}; exit 1"))
        await until_alive(sandbox, marker, 3)
        with within(2, "cancelling exec"):
            call.cancel()
            await asyncio.wait({call})
        require(call.cancelled(), "the cancellation must come out of exec()")
        await until_alive(sandbox, marker, 0, seconds=1)


@check()
async def _twenty_at_once(bench: SandboxBench) -> None:
    """Many execs run side by side in one sandbox, each with its own result."""

    async def one(sandbox: Sandbox, number: int) -> None:
        script = f"read x; sleep 0.2; echo $x; echo e{number} >&2; exit {number}"
        result = await sandbox.exec(script, stdin=f"in{number}\n".encode(), timeout_sec=15)
        found = (result.exit_code, result.stdout.decode(), result.stderr.decode())
        equal(found, (number, f"in{number}\n", f"e{number}\n"), f"result {number}")

    async with bench.sandbox() as sandbox:
        with within(3.5, "20 execs of 0.2 s at once"):
            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(one(sandbox, number))


@check()
async def _loop_is_not_blocked(bench: SandboxBench) -> None:
    """Nothing blocks the event loop while a command runs."""
    async with bench.sandbox() as sandbox:
        loop, worst = asyncio.get_running_loop(), 0.0
        task = asyncio.create_task(sandbox.exec("head -c 8M /dev/zero; sleep 0.3"))
        while not task.done():
            start = loop.time()
            await asyncio.sleep(0.01)
            worst = max(worst, loop.time() - start)
        await task
        require(worst < 0.5, f"the event loop was blocked for {worst:.2f} s")


@check()
async def _no_descriptors_leak(bench: SandboxBench) -> None:
    """A command gets its three streams and no other descriptor of the engine."""
    async with bench.sandbox() as sandbox:
        await need_program(sandbox, "readlink")
        listed = await sh(
            sandbox, "cd /proc/$$/fd; for f in *; do echo $f; readlink $f || echo gone; done"
        )
        rows = listed.splitlines()
        extra = [
            f"{number} -> {target}"
            for number, target in zip(rows[::2], rows[1::2], strict=False)
            if int(number) > 2 and target != "gone" and not target.startswith("/proc/")
        ]
        require(not extra, f"the command holds {extra}")


EXEC_CHECKS = (
    _exit_code_and_ok,
    _stdout_and_stderr_are_apart,
    _string_goes_through_the_shell,
    _argv_does_not,
    _missing_program_is_127,
    _not_executable_is_126,
    _signals_are_128_plus_n,
    _env_is_layered,
    _cwd_and_workdir,
    _missing_cwd_is_126,
    _user_switch,
    _default_user_of_the_spec,
    _unknown_user_is_126,
    _stdin_bytes,
    _no_stdin_is_the_end_of_file,
    _large_stdin,
    _unread_stdin_does_not_hang,
    _binary_output,
    _output_limit_keeps_head_and_tail,
    _flood_costs_bounded_memory,
    _duration_is_measured,
    _held_stdout_does_not_hold_exec,
    _background_survives_exec,
    _kill_leftovers,
    _cancelled_call_kills,
    _twenty_at_once,
    _loop_is_not_blocked,
    _no_descriptors_leak,
)
"""Checks of `Sandbox.exec`."""
