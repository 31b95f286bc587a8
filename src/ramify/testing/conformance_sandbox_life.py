"""Checks of a sandbox's life: prepare, create, freeze, teardown, and what must not stay."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError, SandboxError, SandboxLostError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import (
    Sandbox,
    SandboxImage,
    SandboxSpec,
)
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.testing.check import ConformanceError, check, equal, raises, require, within
from ramify.testing.sandbox_bench import SandboxBench, alive, mark, sh


async def _freeze(sandbox: Sandbox) -> SandboxImage:
    if not isinstance(sandbox, Freezable):
        raise ConformanceError("capabilities().snapshot promises freeze, but there is no freeze()")
    return await sandbox.freeze()


def _engine_traces(bench: SandboxBench) -> tuple[int, int]:
    """What the bench counts, and descendants of this process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                stat = (entry / "stat").read_text()
                state, parent = stat.rpartition(")")[2].split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent)
    family, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return bench.traces(), len(family) - 1


async def _settle(bench: SandboxBench, before: tuple[int, int], seconds: float = 2.5) -> None:
    """Require that there are no more traces and descendants than before."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    now = await asyncio.to_thread(_engine_traces, bench)
    while now[0] > before[0] or now[1] > before[1]:
        require(loop.time() < end, f"traces (mounts) and processes: {before} before, {now} after")
        await asyncio.sleep(0.05)
        now = await asyncio.to_thread(_engine_traces, bench)


@check()
async def _probe_is_ok(bench: SandboxBench) -> None:
    """probe tells whether the provider works on this machine; it names the mode chosen."""
    report = await bench.provider.probe()
    require(report.ok, f"the provider under test does not work here: {report.detail}")
    require(bool(report.mode), "ProbeReport.mode must name the variant chosen")


@check()
async def _prepare_is_cached(bench: SandboxBench) -> None:
    """prepare gives the pristine image of a spec, the same one each time."""
    one, two = await bench.provider.prepare(bench.spec), await bench.provider.prepare(bench.spec)
    equal((one.id, one.digest), (two.id, two.digest), "id and digest of the second call")
    equal((one.pristine, one.parent), (True, None), "pristine and parent")
    equal(one.provider, bench.provider.name, "provider")
    require(bool(one.digest), "the digest must identify the content")


@check("images")
async def _unknown_image_is_refused(bench: SandboxBench) -> None:
    """prepare and create raise ConfigError for an image that does not exist."""
    spec = SandboxSpec(image="conformance.invalid/no/such-image:absent")
    with raises(ConfigError, doing="preparing an image that does not exist"):
        await bench.provider.prepare(spec)


@check()
async def _identity(bench: SandboxBench) -> None:
    """Each sandbox has its own id, and knows the spec it was made from."""
    async with bench.sandbox() as one, bench.sandbox() as two:
        require(one.id != two.id and bool(one.id), f"ids {one.id!r} and {two.id!r}")
        equal(one.spec, bench.spec, "spec")


@check()
async def _six_at_once(bench: SandboxBench) -> None:
    """A provider is used by many tasks at once."""

    async def one(number: int) -> str:
        async with bench.sandbox() as sandbox:
            await sh(sandbox, f"mkdir -p /tmp/conf{number} && echo {number} > /tmp/conf{number}/n")
            return await sh(sandbox, f"cat /tmp/conf{number}/n; rm -r /tmp/conf{number}")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(6)]
    equal([task.result() for task in tasks], [str(n) for n in range(6)], "results")


@check("freeze")
async def _frozen_content(bench: SandboxBench) -> None:
    """freeze turns the file system into an image: changes, removals, modes and links included."""
    script = (
        "mkdir -p /srv/conf/d && cd /srv/conf && echo kept > f && chmod 751 f && ln -s f link && "
        "ln f hard && echo gone > gone && rm gone && rm -f /etc/issue && "
        "mkdir /tmp/was && rmdir /tmp/was && echo x > /tmp/was && rm -rf /etc/skel"
    )
    look = (
        "cd /srv/conf && cat f link && stat -c %a:%h f && ls -A . d && "
        "test ! -e /etc/issue && test ! -e /etc/skel && cat /tmp/was"
    )
    async with bench.sandbox() as sandbox:
        await sh(sandbox, script)
        before = await sh(sandbox, look)
        image = await _freeze(sandbox)
    try:
        equal((image.pristine, image.provider), (False, bench.provider.name), "image")
        require(image.parent is not None and bool(image.digest), "parent and digest must be set")
        async with bench.sandbox(image=image) as child:
            equal(await sh(child, look), before, "what a child sees")
    finally:
        await bench.provider.discard(image)


@check("freeze")
async def _frozen_owners(bench: SandboxBench) -> None:
    """freeze keeps owners, and a child has the spec's user, workdir and environment."""
    spec = msgspec.structs.replace(bench.spec, workdir="/srv", env={"CONF": "kept"})
    async with bench.sandbox(spec) as sandbox:
        await sh(sandbox, "echo x > owned && chown 65534:65534 owned && chmod 600 owned")
        image = await _freeze(sandbox)
    try:
        async with bench.sandbox(spec, image) as child:
            equal(await sh(child, "stat -c %u:%g:%a owned"), "65534:65534:600", "owner and mode")
            equal(await sh(child, "pwd; echo $CONF"), "/srv\nkept", "workdir and environment")
    finally:
        await bench.provider.discard(image)


@check("freeze")
async def _frozen_sandbox_is_spent(bench: SandboxBench) -> None:
    """After freeze only teardown may be called; every process inside was killed."""
    marker = mark()
    async with bench.sandbox() as sandbox:
        process = await sandbox.spawn(["sleep", marker])
        image = await _freeze(sandbox)
        with raises(SandboxError, doing="exec() after freeze()"):
            await sandbox.exec("true")
        with suppress(SandboxLostError):
            async with asyncio.timeout(2):
                await process.wait()
        await process.aclose()
    try:
        async with bench.sandbox(image=image) as child:
            equal(await alive(child, marker), 0, "processes of the frozen sandbox in a child")
    finally:
        await bench.provider.discard(image)


@check("freeze")
async def _children_are_isolated(bench: SandboxBench) -> None:
    """N children of one image run side by side, and siblings never see each other's writes."""
    async with bench.sandbox() as sandbox:
        await sh(sandbox, "mkdir /srv/conf && echo base > /srv/conf/f")
        image = await _freeze(sandbox)

    async def child(number: int, ready: asyncio.Barrier) -> None:
        async with bench.sandbox(image=image) as sandbox:
            await sh(sandbox, f"echo {number} >> /srv/conf/f; echo x > /srv/conf/own{number}")
            await ready.wait()
            found = await sh(sandbox, "cat /srv/conf/f; ls /srv/conf")
            equal(found.split(), ["base", str(number), "f", f"own{number}"], f"child {number}")

    try:
        barrier = asyncio.Barrier(3)
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(child(number, barrier))
        async with bench.sandbox(image=image) as later:
            equal(await sh(later, "cat /srv/conf/f"), "base", "what a later child sees")
    finally:
        await bench.provider.discard(image)


@check("freeze")
async def _chain_of_two(bench: SandboxBench) -> None:
    """A child can be frozen in turn; each image names its parent."""
    images: list[SandboxImage] = []
    try:
        async with bench.sandbox() as sandbox:
            await sh(sandbox, "mkdir /srv/conf && echo 1 > /srv/conf/a && echo 1 > /srv/conf/b")
            images.append(await _freeze(sandbox))
        async with bench.sandbox(image=images[0]) as sandbox:
            await sh(sandbox, "cd /srv/conf && rm a && echo 2 > b && echo 2 > c")
            images.append(await _freeze(sandbox))
        equal(images[1].parent, images[0].id, "parent of the second image")
        require(images[0].digest != images[1].digest, "other content must have another digest")
        async with bench.sandbox(image=images[1]) as sandbox:
            equal(await sh(sandbox, "cd /srv/conf && echo *; cat b c"), "b c\n2\n2", "grandchild")
        async with bench.sandbox(image=images[0]) as sandbox:
            equal(await sh(sandbox, "cd /srv/conf && echo *; cat b"), "a b\n1", "the first image")
    finally:
        for image in reversed(images):
            await bench.provider.discard(image)


@check("freeze")
async def _discard(bench: SandboxBench) -> None:
    """discard frees a frozen image and is idempotent; pristine images stay."""
    async with bench.sandbox() as sandbox:
        image = await _freeze(sandbox)
    await bench.provider.discard(image)
    await bench.provider.discard(image)
    pristine = await bench.provider.prepare(bench.spec)
    await bench.provider.discard(pristine)
    async with bench.sandbox() as sandbox:
        equal(await sh(sandbox, "echo on"), "on", "a sandbox on the pristine image")


@check()
async def _teardown_is_idempotent(bench: SandboxBench) -> None:
    """teardown is idempotent, also at the same time, and bounded in time with work under way."""
    sandbox = await bench.provider.create(bench.spec)
    busy = asyncio.create_task(sandbox.exec("trap '' TERM; while :; do sleep 1; done"))
    await sandbox.spawn("trap '' TERM; yes")
    await asyncio.sleep(0.1)
    with within(8, "teardown with running commands"):
        async with asyncio.TaskGroup() as group:
            group.create_task(sandbox.teardown())
            group.create_task(sandbox.teardown())
    await sandbox.teardown()
    with raises(SandboxLostError, doing="an exec whose sandbox was torn down"):
        async with asyncio.timeout(3):
            await busy


@check()
async def _use_after_teardown(bench: SandboxBench) -> None:
    """Every method raises SandboxLostError once the sandbox is gone."""

    async def never(reader: ByteReader, writer: ByteWriter) -> None:
        raise ConformanceError("a handler was called after teardown")

    local = bench.scratch / "local"
    local.write_bytes(b"x")
    async with bench.sandbox() as sandbox:
        await sandbox.teardown()
        calls = {
            "exec": lambda: sandbox.exec("true"),
            "spawn": lambda: sandbox.spawn("true"),
            "upload": lambda: sandbox.upload(local, "/tmp/x"),
            "download": lambda: sandbox.download("/etc/passwd", bench.scratch / "got"),
            "expose_port": lambda: sandbox.expose_port(80),
            "serve_in": lambda: sandbox.serve_in(0, never),
        }
        for name, call in calls.items():
            with raises(SandboxLostError, doing=f"{name}() after teardown"):
                async with asyncio.timeout(3):
                    await call()


@check()
async def _teardown_leaves_nothing(bench: SandboxBench) -> None:
    """teardown leaves no process and no mount behind."""
    async with bench.sandbox() as warm:  # what a provider keeps for all its sandboxes is there now
        await sh(warm, "echo warm")
    before = await asyncio.to_thread(_engine_traces, bench)
    sandbox = await bench.provider.create(bench.spec)
    await sandbox.spawn(f"setsid sleep {mark()} & sleep {mark()}")
    await sandbox.teardown()
    await _settle(bench, before)


@check(timeout_sec=60)
async def _cancelled_create_leaves_nothing(bench: SandboxBench) -> None:
    """Cancellation of create leaves nothing behind, whenever it comes."""
    async with bench.sandbox() as warm:
        await sh(warm, "echo warm")
    before = await asyncio.to_thread(_engine_traces, bench)
    for delay in (0, 0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32):
        task = asyncio.create_task(bench.provider.create(bench.spec))
        await asyncio.sleep(delay)
        if not task.cancel():
            await (await task).teardown()  # it was ready before we could cancel
            continue
        with within(5, "cancelling create()"):
            with suppress(asyncio.CancelledError):
                await (await task).teardown()
    await _settle(bench, before)
    equal(await bench.provider.sweep(), 0, "things that sweep() found to remove")
    async with bench.sandbox() as sandbox:
        equal(await sh(sandbox, "echo on"), "on", "the next sandbox")


@check()
async def _sweep_spares_the_living(bench: SandboxBench) -> None:
    """sweep removes what engines that died left behind, and nothing that is in use."""
    async with bench.sandbox() as sandbox:
        equal(await bench.provider.sweep(), 0, "things removed")
        equal(await sh(sandbox, "echo on"), "on", "a sandbox in use")


@check("fresh")
async def _aclose_tears_down(bench: SandboxBench) -> None:
    """Closing a provider tears down every sandbox still alive, and is idempotent."""
    before = await asyncio.to_thread(_engine_traces, bench)
    if bench.fresh is None:
        raise ConformanceError("`fresh` was asked for, but there is none")
    provider = bench.fresh()
    sandboxes = [await provider.create(bench.spec) for _ in range(2)]
    waiting = asyncio.create_task(sandboxes[0].exec(["sleep", mark()]))
    await asyncio.sleep(0.1)
    with within(10, "closing a provider with live sandboxes"):
        await provider.aclose()
        await provider.aclose()
    with raises(SandboxLostError, doing="an exec whose provider was closed"):
        async with asyncio.timeout(3):
            await waiting
    with raises(SandboxLostError, doing="exec() after its provider was closed"):
        await sandboxes[1].exec("true")
    await _settle(bench, before)


LIFE_CHECKS = (
    _probe_is_ok,
    _prepare_is_cached,
    _unknown_image_is_refused,
    _identity,
    _six_at_once,
    _frozen_content,
    _frozen_owners,
    _frozen_sandbox_is_spent,
    _children_are_isolated,
    _chain_of_two,
    _discard,
    _teardown_is_idempotent,
    _use_after_teardown,
    _teardown_leaves_nothing,
    _cancelled_create_leaves_nothing,
    _sweep_spares_the_living,
    _aclose_tears_down,
)
"""Checks of prepare, create, freeze, discard, teardown, sweep and aclose."""
