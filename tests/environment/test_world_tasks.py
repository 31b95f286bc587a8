"""Tasks that are set in a world: run, verified, hidden files, persistence, the command line."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_world import SMALL, Room, ask, healthy, small, tell_to_crash

import ramify
from ramify import compose
from ramify.contracts.errors import (
    ConfigError,
    EnvironmentFailed,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from ramify.contracts.result import RolloutResult
from ramify.contracts.task import Task
from ramify.contracts.tree import Outcome
from ramify.envs.options import RunOptions
from ramify.envs.worlds import DeclaredWorld, WorldChoice, open_world
from ramify.planes.environment.hidden import is_hidden, split_directory
from ramify.tasks.package import read_task

TEST = """\
python3 - <<'P'
import json, urllib.request
def ask(path):
    return json.load(urllib.request.urlopen("http://localhost:8101" + path))
world = json.load(open("/tests/world.json"))
rows = world["state"]["sqlite /srv/small/mail.db"]
said = ask("/notes"), ask("/log"), any("hello" in row for row in rows.values())
print(said)
open("/logs/verifier/reward.txt", "w").write(str(int(said == (["hello"], ["add hello"], True))))
P
"""
SOLVE = (
    "python3 -c \"import urllib.request as u; u.urlopen('http://localhost:8101/add', b'hello')\""
)


def task_in(place: Path, toml: str, test: str = TEST, solve: str = SOLVE) -> Path:
    root = place / "task"
    for name, text in {
        "task.toml": toml,
        "instruction.md": "Add the note hello to the mail service on port 8101.\n",
        "tests/test.sh": test,
        "solution/solve.sh": solve,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


IN_SMALL = '[ramify]\nimage_free = true\nworld = "../small/manifest.toml"\n'
BY_FLAG = '[environment]\nservices = ["mock-mail"]\n[ramify]\nimage_free = true\n'


async def run(task: Path, out: Path, **options: Any) -> RolloutResult:
    agent = options.pop("agent", "oracle")
    made = RunOptions(out=out, max_retries=0, **options)
    report = await ramify.run(task, agent=agent, sandbox="local", options=made)
    return report.results[0]


@pytest.mark.namespaces
async def test_a_task_names_its_world(tmp_path: Path) -> None:
    small(tmp_path / "small")
    task = task_in(tmp_path, IN_SMALL)
    result = await run(task, tmp_path / "run")
    assert (result.outcome, result.reward) == (Outcome.SCORED, 1.0), result.error
    assert result.grader_isolation == "live"
    logs = list((tmp_path / "run" / "rollouts").glob("*/services/mail.log"))
    assert "mail serves on 8101" in logs[0].read_text()
    result = await run(task, tmp_path / "nop", agent="nop")
    assert result.reward == 0.0


@pytest.mark.namespaces
async def test_a_run_gives_the_world(tmp_path: Path) -> None:
    """`--world` for a task that names services; only those are started."""
    manifest = small(tmp_path / "small")
    task = task_in(tmp_path, BY_FLAG)
    with pytest.raises(ConfigError, match="uses the services mock-mail.*--world FILE"):
        await run(task, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    result = await run(task, tmp_path / "run", world=manifest)
    assert result.reward == 1.0, result.error
    logs = [path.name for path in (tmp_path / "run" / "rollouts").glob("*/services/*")]
    assert logs == ["mail.log"]
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    other = small(tmp_path / "other", ('name = "small"', 'name = "other"'))
    await run(task, tmp_path / "again", world=other)
    again = json.loads((tmp_path / "again" / "job.json").read_text())
    assert job["config_hash"] != again["config_hash"]


@pytest.mark.namespaces
async def test_a_verifier_that_needs_a_judge(tmp_path: Path) -> None:
    small(tmp_path / "small", add='[verifier]\nkind = "agent"\n')
    with pytest.raises(UsageError, match="that grades needs a model of its own.*--judge-model"):
        await run(task_in(tmp_path, IN_SMALL), tmp_path / "run")


async def test_services_and_worlds_that_are_not_there(tmp_path: Path) -> None:
    manifest = small(tmp_path / "small")
    task = task_in(tmp_path, BY_FLAG.replace("mock-mail", "mock-male"))
    with pytest.raises(UnknownNameError, match="'mock-male' .known: calendar, mail."):
        compose.in_world(read_task(task, "t:one"), manifest)
    task = task_in(tmp_path, IN_SMALL.replace("small", "smal"))
    with pytest.raises(ConfigError, match=r"task.toml: ramify.world: there is no manifest"):
        read_task(task, "t:one")


async def test_the_worlds_image_for_tasks_without(tmp_path: Path) -> None:
    selection = '[environment.task_selection]\nkey = "TASK"\n'
    small(tmp_path / "small", add=selection)
    task = task_in(tmp_path, '[ramify]\nworld = "../small/manifest.toml"\n')
    package = compose.in_world(read_task(task, "t:one")).package
    assert package is not None
    assert package.sandbox.image == "python:3.12-slim"
    assert not package.sandbox.host_root
    assert package.sandbox.env == {"TASK": "one"}
    assert package.workdir == "/app"
    own = task_in(
        tmp_path,
        '[environment]\ndocker_image = "mine:1"\n[ramify]\nworld = "../small/manifest.toml"\n',
    )
    package = compose.in_world(read_task(own, "t:one")).package
    assert package is not None
    assert package.sandbox.image == "mine:1"


@pytest.mark.namespaces
async def test_a_service_that_the_agent_kills(tmp_path: Path) -> None:
    """Its end is the world's failure, never a reward."""
    small(tmp_path / "small")
    task = task_in(tmp_path, IN_SMALL, solve="pkill -9 -f 'service.py mail'; sleep 1")
    result = await run(task, tmp_path / "run")
    assert result.outcome is Outcome.ENV_ERROR
    assert result.reward is None
    assert result.error is not None
    assert "'mail' was killed by signal 9" in result.error.message


# ---- files that agents must not see


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("expectations.json", True),
        ("a/b/expectations.json", True),
        ("a/expectations.json.txt", False),
        ("tasks/x/fixtures", True),
        ("deep/tasks/x/fixtures/y/z.json", True),
        ("tasks/fixtures", False),
        ("tasks/x/y/fixtures", False),
        ("secret-1/a", True),
        ("secret/a", False),
    ],
)
def test_patterns(path: str, hidden: bool) -> None:
    patterns = ["expectations.json", "tasks/*/fixtures", "secret-?"]
    assert is_hidden(path, patterns) is hidden


def test_split(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    (source / "data" / "gold.json").write_text("gold")
    (source / "data" / "given.json").write_text("given")
    (source / "link").symlink_to("data/given.json")
    whole = split_directory(source, ["other"], tmp_path / "home")
    assert whole == (source, None)
    visible, hidden = split_directory(source, ["gold.json"], tmp_path / "home")
    assert hidden is not None
    assert sorted(str(p.relative_to(visible)) for p in visible.rglob("*")) == [
        "data",
        "data/given.json",
        "link",
    ]
    assert [p.name for p in hidden.rglob("*") if p.is_file()] == ["gold.json"]
    assert split_directory(source, ["gold.json"], tmp_path / "home") == (visible, hidden)
    (source / "data" / "gold.json").write_text("other gold")
    assert split_directory(source, ["gold.json"], tmp_path / "home").hidden != hidden


HIDE = '[verifier]\nhidden_from_agent = ["gold.json", "fixtures/*.txt"]\n'


@pytest.mark.namespaces
async def test_hidden_files_are_the_verifiers_alone(tmp_path: Path) -> None:
    manifest = small(tmp_path / "small", add=HIDE)
    (manifest.parent / "files" / "gold.json").write_text("a-word-to-look-for")
    search = "grep -D skip -rl a-word-to-look-for /app /srv /tmp /var /root /home /etc /run 2>&-"
    test = f"cp /app/found.txt /logs/verifier/; {search} > /logs/verifier/now.txt; " + (
        "if [ ! -s /app/found.txt ] && grep -q a-word-to /tests/gold.json; then r=1; else r=0; fi;"
        " echo $r > /logs/verifier/reward.txt"
    )
    look = f"({search}; find / -name gold.json; grep -al '[g]old.json' /proc/*/cmdline) 2>&-"
    task = task_in(tmp_path, IN_SMALL, test=test, solve=f"{look} > found.txt; true")
    (task / "given" / "fixtures").mkdir(parents=True)
    (task / "given" / "fixtures" / "x.txt").write_text("hidden")
    (task / "given" / "seen.txt").write_text("seen")
    (task / "task.toml").write_text(IN_SMALL + 'files = "given"\n')
    result = await run(task, tmp_path / "run")
    found = [p.read_text() for p in (tmp_path / "run").rglob("found.txt")]
    assert result.reward == 1.0, (result.error, found)


@pytest.mark.namespaces
async def test_an_image_that_holds_hidden_files_is_refused(room: Room) -> None:
    manifest = small(room.place / "small", add='[verifier]\nhidden_from_agent = ["passwd"]\n')
    async with room.sandbox() as (sandbox, ctx):
        world = room.world(manifest)
        with pytest.raises(EnvironmentFailed, match="the image holds files .*: .*/etc/passwd"):
            await world.provision(sandbox, ctx)
        await world.teardown()


# ---- from one episode to the next


@pytest.mark.namespaces
async def test_persistent_state_goes_on(room: Room) -> None:
    manifest = small(room.place / "w", ("[environment]", '[environment]\nisolation = "persistent"'))
    for number in range(3):
        async with room.opened(manifest) as (world, _, _):
            urls = await world.urls()
            for url in urls.values():
                notes = await asyncio.to_thread(ask, f"{url}/notes")
                assert notes == [f"note {each}" for each in range(number)]
                await asyncio.to_thread(ask, f"{url}/add", f"note {number}".encode())
            log = await asyncio.to_thread(ask, f"{urls['mail']}/log")
            assert len(log) == number + 1


@pytest.mark.namespaces
async def test_persistent_rollouts_of_a_job(tmp_path: Path) -> None:
    """One after the other, also where verification ends the sandbox that the state is in."""
    small(tmp_path / "small", ("[environment]", '[environment]\nisolation = "persistent"'))
    test = """python3 -c "
import json
rows = json.load(open('/tests/world.json'))['state']['sqlite /srv/small/mail.db']
notes = [key for key in rows if key.startswith('notes[')]
open('/logs/verifier/reward.txt', 'w').write(str(len(notes) / 4))"
"""
    task = task_in(tmp_path, f'{IN_SMALL}isolation = "filesystem"\n', test=test)
    options = RunOptions(out=tmp_path / "run", repeats=3, concurrency=3, max_retries=0)
    report = await ramify.run(task, agent="oracle", sandbox="local", options=options)
    assert sorted(result.reward or 0.0 for result in report.results) == [0.25, 0.5, 0.75], [
        result.error for result in report.results
    ]
    assert {result.grader_isolation for result in report.results} == {"filesystem"}


@pytest.mark.namespaces
async def test_per_task_state_does_not(room: Room) -> None:
    manifest = small(room.place / "w")
    for _ in range(2):
        async with room.opened(manifest) as (world, _, _):
            url = (await world.urls())["mail"]
            assert await asyncio.to_thread(ask, f"{url}/notes") == []
            await asyncio.to_thread(ask, f"{url}/add", b"note")


@pytest.mark.namespaces
async def test_persistent_episodes_wait_for_each_other(room: Room) -> None:
    manifest = small(room.place / "w", ("[environment]", '[environment]\nisolation = "persistent"'))

    async def episode(number: int) -> None:
        async with room.opened(manifest) as (world, _, _):
            url = (await world.urls())["mail"]
            await asyncio.to_thread(ask, f"{url}/add", str(number).encode())

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(episode(number))
    async with room.opened(manifest) as (world, _, _):
        url = (await world.urls())["mail"]
        assert sorted(await asyncio.to_thread(ask, f"{url}/notes")) == ["0", "1", "2"]
        async with room.sandbox() as (sandbox, ctx):
            second = room.world(manifest, wait_sec=0.3)
            with pytest.raises(EnvironmentFailed, match="another episode has used"):
                await second.provision(sandbox, ctx)
            await second.teardown()


@pytest.mark.namespaces
async def test_a_failed_episode_leaves_the_state_before(room: Room) -> None:
    manifest = small(room.place / "w", ("[environment]", '[environment]\nisolation = "persistent"'))
    async with room.opened(manifest) as (world, _, _):
        url = (await world.urls())["mail"]
        await asyncio.to_thread(ask, f"{url}/add", b"kept")
    async with room.sandbox(Task("worlds:two")) as (sandbox, ctx):
        world = room.world(manifest)
        await world.provision(sandbox, ctx)
        await healthy(world, ctx)
        url = (await world.urls())["mail"]
        await asyncio.to_thread(ask, f"{url}/add", b"lost")
        await sandbox.exec("pkill -9 -f 'service.py mail'", cwd="/")
        await asyncio.sleep(0.3)
        with pytest.raises(EnvironmentFailed, match="'mail' was killed"):
            await world.teardown()
    async with room.opened(manifest) as (world, _, _):
        url = (await world.urls())["mail"]
        assert await asyncio.to_thread(ask, f"{url}/notes") == ["kept"]


# ---- the command line


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ramify.cli.main", *words]


def ended(*words: str, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command(*words), cwd=cwd, capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.namespaces
def test_env_check(tmp_path: Path) -> None:
    small(tmp_path / "small")
    code, out, err = ended(
        "env", "check", "small/manifest.toml", "--image-free", "--json", cwd=tmp_path
    )
    steps = [json.loads(line) for line in out.splitlines()]
    assert [(step["name"], step["status"]) for step in steps] == [
        (name, "ok")
        for name in (
            "manifest", "sandbox", "provision", "readiness", "snapshot", "mutate and restore",
            "mutate and reset", "branch", "teardown",
        )
    ], err  # fmt: skip
    assert code == 0
    assert all(step["seconds"] >= 0 for step in steps)


@pytest.mark.namespaces
def test_env_check_of_worlds_that_are_wrong(tmp_path: Path) -> None:
    small(tmp_path / "dead", ("exec python3 service.py mail", "exit 5; true"))
    code, out, _ = ended("env", "check", "dead/manifest.toml", "--image-free", cwd=tmp_path)
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert code == 1
    assert "failed" in lines["readiness"]
    assert "'mail' ended with exit code 5" in lines["readiness"]
    assert "ok" in lines["teardown"]
    assert "snapshot" not in lines
    # A log that is not restored: what `restore` answers is true, and nothing has happened.
    small(tmp_path / "lying", ('restore = "/_log/load"', 'restore = "/_log/save"'))
    code, out, _ = ended("env", "check", "lying/manifest.toml", "--image-free", cwd=tmp_path)
    assert code == 1
    assert "mutate and restore  failed" in out
    code, _, err = ended("env", "check", "small/none.toml", cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no such manifest" in err


@pytest.mark.namespaces
def test_env_up_ends_when_asked(tmp_path: Path) -> None:
    small(tmp_path / "small")
    process = subprocess.Popen(
        command("env", "up", "small/manifest.toml", "--image-free", "--json"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    try:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())["urls"]
        assert sorted(urls) == ["calendar", "mail"]
        assert ask(f"{urls['mail']}/notes") == []
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            ask(f"{urls['mail']}/notes")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# ---- services that the image's entrypoint starts


ENTRYPOINT = """\
[environment]
name = "boxed"
build = "image"
workdir = "/app"
[environment.task_selection]
key = "CASE"
[[environment.services]]
name = "mail"
port = 8101
health = "/health"
[[environment.state]]
kind = "sqlite"
paths = ["/srv/small/*.db"]
"""


@pytest.mark.docker
async def test_the_entrypoint_knows_the_task(docker_room: Room) -> None:
    """The image is not changed; the task's id is in the environment of what it starts."""
    place = docker_room.place
    (place / "image").mkdir()
    shutil.copy(SMALL / "files" / "service.py", place / "image")
    (place / "image" / "Dockerfile").write_text(
        "FROM python:3.12-slim\nCOPY service.py /opt/service.py\nWORKDIR /opt\n"
        'ENTRYPOINT ["python3", "service.py"]\nCMD ["mail", "8101", "/srv/small/mail.db"]\n'
    )
    manifest = place / "manifest.toml"
    manifest.write_text(ENTRYPOINT)
    async with open_world(WorldChoice(manifest, "docker", task="case-7")) as world:
        url = (await world.urls())["mail"]
        assert await asyncio.to_thread(ask, f"{url}/environ?name=CASE") == "case-7"
        assert (await world.query())["services"]["mail"]["state"] == "running"
        with pytest.raises(UnsupportedError, match="memory of mail, entrypoint would be lost"):
            await world.quiesce(False)
        await asyncio.to_thread(tell_to_crash, url)
        with pytest.raises(EnvironmentFailed, match="'entrypoint' ended with exit code 3"):
            await gone(world)


async def gone(world: DeclaredWorld) -> None:
    for _ in range(200):
        await world.readiness()
        await asyncio.sleep(0.05)
