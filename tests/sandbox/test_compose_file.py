"""Compose files: what is read, what is refused, and how variables are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import ComposeSpec, Healthcheck
from ramify.planes.sandbox.docker.composefile import Project, read_project
from ramify.planes.sandbox.docker.composemounts import Mount
from ramify.planes.sandbox.docker.interpolation import interpolate, read_env_file

MAIN = "services:\n  main:\n    image: base\n"
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
PLAIN = st.text(alphabet=st.characters(exclude_characters="${}", codec="utf-8"), max_size=20)

REFUSED = {
    "privileged: true": "privileges",
    "network_mode: host": "leave the sandbox",
    "network_mode: service:db": "leave the sandbox",
    "pid: host": "process namespace",
    "ipc: host": "IPC",
    "userns_mode: host": "user namespace",
    "devices: [/dev/kvm]": "devices",
    "gpus: all": "GPU",
    "runtime: nvidia": "runtime",
    "cap_add: [SYS_ADMIN]": "SYS_ADMIN",
    "cap_add: [ALL]": "ALL",
    "security_opt: [seccomp:unconfined]": "no-new-privileges",
    "sysctls: {net.ipv4.ip_forward: 1}": "kernel settings",
    "volumes: [/etc:/host]": "outside",
    "volumes: ['/var/run/docker.sock:/var/run/docker.sock']": "docker.sock",
    "volumes: ['../:/up']": "outside",
    "volumes: ['./link:/up']": "outside",
    "volumes: ['~/x:/home']": "outside",
    "volumes: [{type: bind, source: /, target: /host}]": "outside",
    "volumes: [{type: npipe, source: x, target: /y}]": "npipe",
    "volumes: ['./data:/data:slave']": "slave",
    "build: {context: ../..}": "outside",
    "build: {context: ., network: host}": "network",
    "build: {context: ., secrets: [token]}": "secrets",
    "build: https://example.org/repo.git#main": "no directory",
    "env_file: /etc/passwd": "outside",
    "secrets: [token]": "secret",
    "configs: [x]": "configs",
    "extends: {service: other}": "extends",
    "profiles: [debug]": "profiles",
    "deploy: {replicas: 3}": "runs once",
    "deploy: {resources: {reservations: {devices: [{driver: nvidia}]}}}": "devices",
    "deploy: {mode: global}": "mode",
    "links: [db]": "links",
    "extra_hosts: ['host.docker.internal:host-gateway']": "extra_hosts",
    "frobnicate: 1": "frobnicate",
}
WRONG = {
    "build: gone": "there is no",
    "depends_on: [nobody]": "nobody",
    "depends_on: {main: {condition: service_started}}": "main -> main",
    "depends_on: {main: {condition: soon}}": "soon",
    "networks: [other]": "other",
    "volumes: ['data:/data']": "no volume 'data'",
    "volumes: [{type: bind, source: ./missing, target: /data}]": "there is no",
    "volumes: ['./data:relative']": "absolute",
    "volumes: ['./data:/']": "no place",
    "volumes: ['./data:/.ramify/bin']": "no place",
    "mem_limit: lots": "no size",
    "cpus: many": "no number",
    "cpus: -1": "no number",
    "healthcheck: {test: [ls], interval: 1s}": "CMD",
    "healthcheck: {test: ls, interval: soon}": "no duration",
    "init: perhaps": "neither true nor false",
    "restart: sometimes": "restart policy",
    "command: 'echo \"'": "words",
    "environment: {A: '${B:?set B first}'}": "set B first",
    "environment: {A: '${B'}": "never closed",
    "environment: {A: 'costs $5'}": "lone",
    "environment: {A: [1]}": "single value",
    "image: base\n    image: other": "comes twice",
    "labels: {a: &x [*x]}": None,
    "ports: {": None,
}


def read(folder: Path, text: str, env: dict[str, str] | None = None, main: str = "main") -> Project:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "docker-compose.yaml").write_text(text)
    return read_project(ComposeSpec(str(folder / "docker-compose.yaml"), main, env or {}))


@pytest.mark.parametrize(("line", "reason"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_served_is_refused_by_name(tmp_path: Path, line: str, reason: str) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    text = f"services:\n  main:\n    {line}\n"
    with pytest.raises(UnsupportedError, match=reason) as caught:
        read(folder, text)
    assert str(folder / "docker-compose.yaml") in str(caught.value)
    assert f"services.main.{line.partition(':')[0]}" in str(caught.value)


@pytest.mark.parametrize(("line", "reason"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, reason: str | None) -> None:
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    with pytest.raises(ConfigError, match=reason) as caught:
        read(tmp_path, f"services:\n  main:\n    {line}\n    x-more: 1\n")
    assert caught.value.file == str(tmp_path / "docker-compose.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "include: [other.yaml]\n" + MAIN,
        "secrets: {token: {file: ./token}}\n" + MAIN,
        "networks: {out: {external: true}}\n" + MAIN,
        "networks: {out: {driver: host}}\n" + MAIN,
        "volumes: {data: {external: true}}\n" + MAIN,
        "volumes: {data: {driver: nfs}}\n" + MAIN,
        "volumes: {data: {driver_opts: {device: /etc, o: bind, type: none}}}\n" + MAIN,
    ],
)
def test_what_is_not_served_at_the_top_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UnsupportedError):
        read(tmp_path, text)


def test_a_file_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "TAG=3.12 # a comment\nexport USER_NAME='o$ne'\nTAG2=${TAG}-slim\n"
    )
    (tmp_path / "more.env").write_text("FROM_FILE=1\nBOTH=file\n")
    project = read(
        tmp_path,
        """
version: "3.8"
x-env: &env {SWITCH: on, MODE: 0755, EMPTY: "", BOTH: direct, PASSED: }
services:
  main:
    build: {context: "${CONTEXT_DIR}", args: {A: "${TAG2}"}, target: final}
    container_name: box-1
    command: sleep infinity
    environment: {<<: *env, USER_NAME: "${USER_NAME}", PRICE: "$$5"}
    env_file: [more.env, {path: gone.env, required: false}]
    depends_on:
      db: {condition: service_healthy}
    volumes: ["${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}", "store:/store",
              ./data:/data]
    deploy: {resources: {limits: {cpus: "${CPUS}", memory: "${MEMORY}"}}}
    ports: ["22:22"]
    networks: {front: {aliases: [web]}, default: }
  db:
    image: "db:${TAG}"
    healthcheck: {test: pg_isready, interval: 1m30s, timeout: 500ms, retries: 4}
    environment: [A=1, B]
    tmpfs: /run:size=1m
    mem_limit: 512m
    shm_size: 1gb
    stop_grace_period: 1s
networks: {front: {internal: true}}
volumes: {store: }
""",
        {"PASSED": "through", "MEMORY": "2G"},
    )
    main, db = project.services["main"], project.services["db"]
    assert main.env == {
        "SWITCH": "on", "MODE": "0755", "EMPTY": "", "BOTH": "direct", "PASSED": "through",
        "FROM_FILE": "1", "USER_NAME": "o$ne", "PRICE": "$5",
    }  # fmt: skip
    assert main.build is not None
    assert main.build.context == tmp_path.resolve()
    assert main.build.args == {"A": "3.12-slim"}
    assert main.command == ("sleep", "infinity")
    assert main.depends_on == {"db": "service_healthy"}
    assert main.networks == {"front": ("box-1", "web"), "default": ("box-1",)}
    assert main.mounts == (
        Mount("volume", "store", "/store"),
        Mount("bind", str((tmp_path / "data").resolve()), "/data"),
    )
    assert (main.resources.cpus, main.resources.memory) == (None, 2 * 1024**3)
    assert db.image == "db:3.12"
    assert db.env == {"A": "1"}
    assert db.healthcheck == Healthcheck(("CMD-SHELL", "pg_isready"), 90.0, 0.5, 0.0, 4)
    assert db.tmpfs == {"/run": "size=1m"}
    assert (db.resources.memory, db.resources.shm) == (512 * 1024**2, 1024**3)
    assert project.networks == ("front", "default")


def test_the_agents_service_takes_its_image_from_the_task(tmp_path: Path) -> None:
    beside = "services:\n  db:\n    image: db\n"
    with pytest.raises(ConfigError, match="Dockerfile"):
        read(tmp_path, beside)
    main = read(tmp_path, beside, {"MAIN_IMAGE_NAME": "made"}).services["main"]
    assert (main.image, main.build) == ("made", None)
    (tmp_path / "Dockerfile").write_text("FROM base\n")
    main = read(tmp_path, "services: {main: {depends_on: [db]}, db: {image: db}}").services["main"]
    assert main.build is not None
    assert main.build.context == tmp_path.resolve()
    shared = "services: {main: {}, twin: {image: '${MAIN_IMAGE_NAME}'}}"
    both = read(tmp_path, shared).services
    assert both["main"].build is not None
    assert both["main"].image == both["twin"].image
    assert main.depends_on == {"db": "service_started"}
    assert main.networks == {"default": ()}


def test_a_directory_that_is_not_there_is_an_empty_volume(tmp_path: Path) -> None:
    text = "services: {main: {image: base, volumes: ['./runs:/app/runs']}}"
    assert read(tmp_path, text).services["main"].mounts == (Mount("volume", "", "/app/runs"),)


def test_aliases_that_multiply_are_stopped(tmp_path: Path) -> None:
    lines = ["x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"x-a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="too often"):
        read(tmp_path, "\n".join(lines) + "\n" + MAIN)


@given(NAMES, PLAIN.filter(bool), PLAIN)
def test_a_variable_is_its_value_or_its_default(name: str, value: str, other: str) -> None:
    full, empty, unset = {name: value}, {name: ""}, dict[str, str]()
    forms = {
        f"${{{name}}}": (value, "", ""),
        f"${{{name}:-{other}}}": (value, other, other),
        f"${{{name}-{other}}}": (value, "", other),
        f"${{{name}:+{other}}}": (other, "", ""),
        f"${{{name}+{other}}}": (other, other, ""),
    }
    for text, wanted in forms.items():
        assert tuple(interpolate(text, env) for env in (full, empty, unset)) == wanted
    for text, env in ((f"${{{name}:?{other}}}", empty), (f"${{{name}?{other}}}", unset)):
        with pytest.raises(ValueError, match=name):
            interpolate(text, env)
    assert interpolate(f"${{{name}?{other}}}", empty) == ""
    assert interpolate(f"<${name}>", full) == f"<{value}>"


@given(PLAIN, PLAIN, NAMES, NAMES)
def test_defaults_nest_and_values_are_not_interpolated(a: str, b: str, one: str, two: str) -> None:
    if one != two:
        assert interpolate(f"{a}${{{one}:-{b}${{{two}-x}}}}", {two: "$$"}) == f"{a}{b}$$"


@given(st.text(max_size=40))
def test_escaped_text_stays_and_other_text_gives_text_or_an_error(text: str) -> None:
    assert interpolate(text.replace("$", "$$"), {}) == text
    try:
        assert isinstance(interpolate(text, {"A": "b"}), str)
    except ValueError:
        assert "$" in text


@pytest.mark.parametrize("text", ["=1", "a b=1", "A='open", 'A="x" y', "A=${B:?no}"])
def test_a_bad_env_file_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        read_env_file(text, {})


def test_an_env_file_is_read_with_its_quotes() -> None:
    text = "# note\n\nA=1\nB=\"two\\nlines $A\"  # why\nC='$A'\nD=${A}2 #c\nE=\nF#=1\n"
    with pytest.raises(ValueError, match="line 8"):
        read_env_file(text, {})
    found = read_env_file(text.replace("F#=1\n", "SHELL_ONLY\n"), {"SHELL_ONLY": "s"})
    assert found == {
        "A": "1",
        "B": "two\nlines 1",
        "C": "$A",
        "D": "12",
        "E": "",
        "SHELL_ONLY": "s",
    }
