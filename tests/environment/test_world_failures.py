"""What goes wrong in a world is one clear error that names the service, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from small_world import Room, ask, healthy, small, tell_to_crash

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, EnvironmentFailed, UnsupportedError
from ramify.contracts.sandbox import Sandbox
from ramify.contracts.task import Task
from ramify.planes.environment.world import ManifestEnvironment

pytestmark = pytest.mark.namespaces

SERVE = "exec python3 service.py mail 8101 /srv/small/mail.db"


async def come_up(world: ManifestEnvironment, sandbox: Sandbox, ctx: Context) -> None:
    await world.provision(sandbox, ctx)
    await healthy(world, ctx)


async def refused(room: Room, manifest: Path) -> str:
    """What a world that does not come up says."""
    async with room.sandbox() as (sandbox, ctx):
        world = room.world(manifest)
        with pytest.raises(EnvironmentFailed) as caught:
            await come_up(world, sandbox, ctx)
        await world.teardown()
        left = await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", cwd="/")
        assert b"service.py" not in left.stdout, "a service is left"
    return str(caught.value)


async def test_a_command_that_is_not_there(room: Room) -> None:
    said = await refused(room, small(room.place / "w", (SERVE, "no-such-program --serve")))
    assert "service 'mail' ended with exit code 127" in said
    assert "no-such-program: not found" in said


async def test_a_service_that_ends_early(room: Room) -> None:
    said = await refused(room, small(room.place / "w", (SERVE, "echo out; echo err >&2; exit 7")))
    assert "service 'mail' ended with exit code 7" in said
    assert said.endswith("out\nerr")


async def test_a_service_that_goes_to_the_background(room: Room) -> None:
    said = await refused(room, small(room.place / "w", (SERVE, "sleep 100 &")))
    assert "ended with exit code 0 (a service has to stay in the foreground)" in said


async def test_a_service_that_never_gets_healthy(room: Room) -> None:
    manifest = small(room.place / "w", (SERVE, "echo waiting; exec sleep 100"), ("= 60", "= 1.5"))
    said = await refused(room, manifest)
    assert "the world was not healthy within 1.5 s: mail (port 8101/health): no answer" in said
    assert "waiting" in said


async def test_a_service_that_answers_wrongly(room: Room) -> None:
    """One look at the wrong path, and one at a nonce that is not echoed."""
    manifest = small(room.place / "w", ('health = "/health"', 'health = "/nope"'), ("= 60", "= 3"))
    assert "mail (port 8101/nope): HTTP 404" in await refused(room, manifest)
    manifest = small(room.place / "v", ('health = "/health"', 'health = "/notes"'), ("= 60", "= 3"))
    assert "does not hold the nonce" in await refused(room, manifest)


async def test_a_readiness_command_that_fails(room: Room) -> None:
    manifest = small(
        room.place / "w", ("nonce = true", 'command = "echo no; exit 4"'), ("= 60", "= 2")
    )
    assert "the readiness command: exit code 4: no" in await refused(room, manifest)


async def test_a_port_that_is_taken(room: Room) -> None:
    manifest = small(room.place / "w")
    async with room.sandbox() as (sandbox, ctx):
        squatter = await sandbox.spawn("exec python3 -m http.server 8102", cwd="/")
        listens = "until grep -q ':1FA6 ' /proc/net/tcp; do sleep 0.05; done"
        await sandbox.exec(listens, cwd="/", timeout_sec=30)
        world = room.world(manifest)
        with pytest.raises(EnvironmentFailed, match="port 8102 of the service 'calendar' is taken"):
            await world.provision(sandbox, ctx)
        await world.teardown()
        await squatter.aclose()


async def test_a_squatter_is_noticed(room: Room) -> None:
    """Another process serves the port that a service should: right answers are not enough."""
    async with room.sandbox() as (sandbox, ctx):
        manifest = small(
            room.place / "w",
            ("exec python3 service.py mail 8101", "exec sleep 100 #"),
            (
                "exec python3 service.py calendar 8102",
                "python3 service.py mail 8101 /srv/other/mail.db & exec python3 service.py "
                "calendar 8102",
            ),
        )
        world = room.world(manifest)
        await world.provision(sandbox, ctx)
        with pytest.raises(EnvironmentFailed, match="port 8101 of the service 'mail' is served by"):
            await healthy(world, ctx)
        await world.teardown()


async def test_a_service_that_dies_later(room: Room) -> None:
    async with room.opened(small(room.place / "w"), revertible=True) as (world, _, _):
        taken = await world.snapshot()
        url = (await world.urls())["mail"]
        await asyncio.to_thread(tell_to_crash, url)
        for _ in range(100):
            try:
                await world.readiness()
            except EnvironmentFailed:
                break
            await asyncio.sleep(0.05)
        for action in (world.query, world.snapshot, world.readiness, world.reset):
            with pytest.raises(EnvironmentFailed, match="'mail' ended with exit code 3") as caught:
                await action()
            assert "mail crashes as it was told" in str(caught.value)
        with pytest.raises(EnvironmentFailed, match="'mail' ended"):
            await world.restore(taken)
        with pytest.raises(EnvironmentFailed, match="'mail' ended"):
            await world.quiesce(False)


async def test_logs_are_kept_and_bounded(room: Room) -> None:
    """A service that writes without end does not block, and fills neither memory nor disk."""
    flood = "python3 -c \\\"print('y' * 30_000_000)\\\" & exec python3 service.py"
    async with room.opened(
        small(room.place / "w", ("exec python3 service.py mail", flood + " mail"))
    ) as (
        world,
        _,
        ctx,
    ):
        url = (await world.urls())["mail"]
        for _ in range(100):
            await asyncio.to_thread(ask, f"{url}/notes")
        log = ctx.artifacts / "services" / "mail.log"
        for _ in range(200):
            if log.stat().st_size > 8 * 1024 * 1024:
                break
            await asyncio.sleep(0.05)
        assert 8 * 1024 * 1024 < log.stat().st_size < 9 * 1024 * 1024


async def test_memory_that_nothing_declares(room: Room) -> None:
    manifest = small(
        room.place / "w", ('on_branch = "restart"\n', ""), ('on_branch = "hook"\n', "")
    )
    async with room.opened(manifest) as (world, _, ctx):
        before = await world.describe()
        with pytest.raises(UnsupportedError, match="memory of mail, calendar would be lost"):
            await world.quiesce(False)
        with pytest.raises(UnsupportedError, match="memory of calendar is no part"):
            await world.snapshot()
        await healthy(world, ctx)
        assert await world.describe() == before
        assert await world.quiesce(True) == {"mail": "live", "calendar": "live"}
        await world.resume()


async def test_an_image_without_an_entrypoint(room: Room) -> None:
    manifest = room.place / "manifest.toml"
    manifest.write_text('[environment]\nname = "w"\nimage = "x"\n')
    async with room.sandbox() as (sandbox, ctx):
        world = room.world(manifest)
        with pytest.raises(ConfigError, match="the image has none"):
            await world.provision(sandbox, ctx)
        await world.teardown()


async def test_restart_takes_a_service_that_ignores_term(room: Room) -> None:
    stubborn = "trap '' TERM; python3 service.py calendar 8102"
    manifest = small(
        room.place / "w",
        ("exec python3 service.py calendar 8102", stubborn),
        ('depends_on = ["mail"]', "stop_timeout = 0.3"),
    )
    async with room.opened(manifest) as (world, sandbox, ctx):
        await world.quiesce(False)
        left = await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", cwd="/")
        assert b"service.py" not in left.stdout
        await world.resume()
        await healthy(world, ctx)


async def test_who_sees_the_task_id(room: Room) -> None:
    """`exec` is for the agent's commands, `entrypoint` for the world's own processes too."""
    for inject, seen in (("entrypoint", "one"), ("exec", None)):
        selection = f'[environment.task_selection]\nkey = "TASK"\ninject_into = "{inject}"\n'
        manifest = small(room.place / inject, add=selection)
        os.environ["RAMIFY_TEST_FORWARDED"] = "yes"
        text = manifest.read_text() + (
            '[environment.forward_env]\nkeys = ["RAMIFY_TEST_FORWARDED", "NOT_SET"]\n'
        )
        manifest.write_text(text)
        try:
            async with room.opened(manifest) as (world, sandbox, _):
                url = (await world.urls())["mail"]
                said = await asyncio.to_thread(ask, f"{url}/environ?name=TASK")
                forwarded = await asyncio.to_thread(
                    ask, f"{url}/environ?name=RAMIFY_TEST_FORWARDED"
                )
                assert (said, forwarded) == (seen, "yes")
                agents = await sandbox.exec("echo $RAMIFY_TEST_FORWARDED", cwd="/")
                assert agents.stdout == b"\n"
        finally:
            del os.environ["RAMIFY_TEST_FORWARDED"]


async def test_the_agent_comes_after_every_answer(room: Room) -> None:
    """answered_at is the time of the oldest answer, and what comes next is later."""
    manifest = small(
        room.place / "w",
        ("exec python3 service.py calendar", "sleep 0.7; exec python3 service.py calendar"),
    )
    async with room.sandbox(Task("worlds:one")) as (sandbox, ctx):
        world = room.world(manifest)
        await world.provision(sandbox, ctx)
        probe = await healthy(world, ctx)
        assert probe.answered_at <= ctx.clock.monotonic()
        events = [event for event in ctx.observer.events if hasattr(event, "fields")]  # type: ignore[attr-defined]
        answered = next(e.fields["answered"] for e in events if "answered" in e.fields)
        assert set(answered) == {"mail (port 8101/health)", "calendar (port 8102/health)"}
        assert max(answered.values()) <= ctx.clock.now()
        await world.teardown()
