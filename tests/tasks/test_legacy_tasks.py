"""Terminal-Bench's task.yaml and BenchFlow's task.md: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, UnsupportedError, UsageError
from ramify.contracts.sandbox import BuildSpec, ComposeSpec, Limits, NetworkMode
from ramify.contracts.task import Task, TaskPackage
from ramify.tasks.package import read_task
from ramify.tasks.yamltext import parse_yaml

TASK_YAML = """
instruction: |
  Do it.
author_name: A
difficulty: easy
tags: [a, b]
parser_name: swebench
max_agent_timeout_sec: 90
max_test_timeout_sec: 30.5
"""
COMPOSE = """
services:
  client:
    build: {dockerfile: Dockerfile}
    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}
    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}
    command: [sh, -c, sleep infinity]
    environment:
      - TEST_DIR=${T_BENCH_TEST_DIR}
      - OTHER=${NOT_SET:-other}$$
    volumes:
      - ${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}
"""


class Legacy:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("task.yaml", TASK_YAML)
        self.write("docker-compose.yaml", COMPOSE)
        self.write("Dockerfile", "FROM debian\nWORKDIR /work\n")
        self.write("run-tests.sh", "true\n")
        self.write("tests/test_outputs.py", "\n")
        self.write("solution.sh", "true\n")

    def write(self, relative: str, text: str) -> Legacy:
        (self.path / relative).parent.mkdir(parents=True, exist_ok=True)
        (self.path / relative).write_text(text)
        return self

    def read(self) -> Task:
        return read_task(self.path, "set:item", {})

    def package(self) -> TaskPackage:
        package = self.read().package
        assert package is not None
        return package


@pytest.fixture
def legacy(tmp_path: Path) -> Legacy:
    return Legacy(tmp_path / "item")


def test_a_legacy_task(legacy: Legacy) -> None:
    task = legacy.read()
    assert task.instruction == "Do it.\n"
    assert task.metadata["difficulty"] == "easy"
    assert task.metadata["tags"] == ["a", "b"]
    package = task.package
    assert package is not None
    assert package.sandbox.build == BuildSpec(str(legacy.path))
    assert package.sandbox.compose is None
    assert package.sandbox.env == {"TEST_DIR": "/tests", "OTHER": "other$"}
    assert package.sandbox.network.mode is NetworkMode.OPEN
    assert package.workdir == "/work"
    assert package.agent_timeout_sec == 90
    settings = package.verifier
    assert (settings.parser, settings.timeout_sec) == ("swebench", 30.5)
    assert (settings.tests, settings.more_tests) == ("tests", ("run-tests.sh",))
    assert settings.command == ("bash", "/tests/run-tests.sh")
    assert package.solution is not None
    assert package.solution.path == "solution.sh"
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task


def test_a_service_that_asks_for_more_stays_a_compose_project(legacy: Legacy) -> None:
    spec = legacy.write("docker-compose.yaml", COMPOSE + "    cap_add: [X]\n").package().sandbox
    assert spec.compose is not None
    assert (spec.compose.main, spec.build) == ("client", None)


def test_several_services_are_a_compose_project(legacy: Legacy) -> None:
    spec = legacy.write("docker-compose.yaml", COMPOSE + "  db: {image: x}\n").package().sandbox
    assert isinstance(spec.compose, ComposeSpec)
    assert spec.compose.file == str(legacy.path / "docker-compose.yaml")


def test_an_image_with_limits(legacy: Legacy) -> None:
    text = """
services:
  main:
    image: debian:12
    working_dir: /srv/
    user: 1000
    environment: {A: 1, B: true, C: null}
    deploy: {resources: {limits: {cpus: "1.5", memory: 2G}}}
"""
    spec = legacy.write("docker-compose.yaml", text).package().sandbox
    assert (spec.image, spec.build, spec.workdir, spec.user) == ("debian:12", None, "/srv", "1000")
    assert spec.env == {"A": "1", "B": "true"}
    assert spec.limits == Limits(memory_mb=2048, cpus=1.5)


def test_a_context_outside_of_the_task_does_not_become_a_build(legacy: Legacy) -> None:
    legacy.write("docker-compose.yaml", "services: {client: {build: ../..}}\n")
    assert legacy.package().sandbox.build is None


def test_a_solution_that_is_typed(legacy: Legacy) -> None:
    (legacy.path / "solution.sh").unlink()
    legacy.write(
        "solution.yaml",
        "- {command: 'cd /work', block: true}\n"
        "- {command: 'serve &', min_timeout_sec: 2, max_timeout_sec: 5}\n",
    )
    solution = legacy.package().solution
    assert solution is not None
    assert solution.script == "#!/bin/bash\ncd /work\nserve &\nsleep 2\n"
    legacy.write("solution.yaml", "- {command: C-c, append_enter: false}\n")
    with pytest.raises(UnsupportedError, match=r"solution.yaml: command 1: single keystrokes"):
        legacy.read()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("task.yaml", "instruction: x\nrun_tests_in_same_shell: true", "run_tests_in_same_shell"),
        ("task.yaml", "instruction: x\nparser: y", "parser: unknown key; did you mean `parser_n"),
        ("task.yaml", "instruction: x\nparser_name: y", "parser_name: Invalid enum value 'y'"),
        ("task.yaml", "difficulty: x", "missing required field `instruction`"),
        ("task.yaml", "- x", "task.yaml: is not a table"),
        ("task.yaml", "a: [", "task.yaml: is not YAML: "),
        ("task.yaml", "a: !!python/object:os.system x", "task.yaml: is not YAML: "),
        ("task.yaml", "a: 2020-13-45", "task.yaml: is not YAML: "),
        ("docker-compose.yaml", "services: {}", "services: names no service"),
        ("docker-compose.yaml", "services: {a: {image: x}, b: {image: x}}", "called `client`"),
        ("docker-compose.yaml", "services: {a: {tty: true}}", "neither `image` nor `build`"),
    ],
)
def test_what_is_wrong_or_not_served(legacy: Legacy, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        legacy.write(name, text).read()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_parts_are_named(legacy: Legacy) -> None:
    (legacy.path / "run-tests.sh").unlink()
    with pytest.raises(ConfigError, match=r"run-tests.sh: is missing"):
        legacy.read()


def test_references_that_explode_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="too many values"):
        parse_yaml("\n".join(lines), "f")
    with pytest.raises(ConfigError, match="too many values"):
        parse_yaml("a: &a [*a]", "f")
    with pytest.raises(ConfigError):
        parse_yaml("[" * 5000, "f")


@given(text=st.text(alphabet="abc:-[]{}&*!|>'\"#,?% \n\t019.", max_size=60) | st.text(max_size=40))
def test_no_yaml_ends_in_anything_but_a_config_error(text: str) -> None:
    try:
        table = parse_yaml(text, "f")
    except ConfigError:
        return
    assert all(isinstance(key, str) for key in table)
    msgspec.json.encode(table)


TASK_MD = """---
schema_version: '1.0'
metadata: {difficulty: easy}
agent: {timeout_sec: 30}
verifier: {timeout_sec: 12, reward_range: [-1, 1]}
sandbox: {cpus: 1, image: debian, allow_internet: false}
---

# About

## prompt

Do it.

### more

Really.
"""


def _benchflow(path: Path, text: str) -> Task:
    for relative in ("verifier/test.sh", "oracle/solve.sh"):
        (path / relative).parent.mkdir(parents=True, exist_ok=True)
        (path / relative).write_text("true\n")
    (path / "task.md").write_text(text)
    return read_task(path, "set:item", {})


def test_a_benchflow_package(tmp_path: Path) -> None:
    task = _benchflow(tmp_path, TASK_MD)
    assert task.instruction == "Do it.\n\n### more\n\nReally.\n"
    package = task.package
    assert package is not None
    assert (package.sandbox.image, package.sandbox.limits.cpus) == ("debian", 1)
    assert package.sandbox.network.mode is NetworkMode.NONE
    assert package.verifier.network is not None
    assert package.verifier.network.mode is NetworkMode.NONE
    assert (package.verifier.tests, package.verifier.reward_range) == ("verifier", (-1, 1))
    assert package.solution is not None
    assert package.solution.path == "oracle"


def test_a_benchflow_package_in_harbors_layout_with_a_world(tmp_path: Path) -> None:
    root = tmp_path / "item"
    for relative in ("tests/test.sh", "solution/solve.sh", "task.toml", "../worlds/world.toml"):
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).write_text("[other]\n")
    front = "benchflow: {environment: {manifest: ../worlds/world.toml}}\nmetadata:"
    (root / "task.md").write_text(TASK_MD.replace("metadata:", front, 1))
    package = read_task(root, "set:item", {}).package
    assert package is not None
    assert package.solution is not None
    assert (package.verifier.tests, package.solution.path) == ("tests", "solution")
    assert package.world == str(tmp_path / "worlds/world.toml")
    assert package.verifier.network is not None
    assert package.verifier.network.mode is NetworkMode.NONE


def test_a_description_beside_task_toml_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('[environment]\ndocker_image = "from-toml"\n')
    (tmp_path / "instruction.md").write_text("From instruction.md.")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test.sh").write_text("true\n")
    for text in ("# About this task\n", "---\ntitle: About\n---\n## prompt\n\nNo.\n"):
        assert _benchflow(tmp_path, text).instruction == "From instruction.md."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("## prompt", "## Prompt"), "no text below `## prompt`"),
        (("---\n\n", "\n\n"), "no front matter"),
        (("cpus: 1", "gpus: 1"), "environment.gpus: GPUs"),
        (("cpus: 1", "setup_commands: [x]"), "environment.setup_commands: unknown key"),
        (("timeout_sec: 12", "type: llm-judge"), "verifier.type: 'llm-judge'"),
        (("### more", "## role:coder"), "## role:coder: roles"),
        (("agent: {timeout_sec: 30}", "agent: 3"), "agent: expected `object`"),
        (("agent: {timeout_sec: 30}", "benchflow: {nudges: {a: 1}}"), "benchflow.nudges: is not"),
        (("agent: {timeout_sec: 30}", "benchflow: {environment: {manifest: w}}"), "no manifest"),
    ],
)
def test_what_is_wrong_in_a_benchflow_package(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _benchflow(tmp_path, TASK_MD.replace(*change, 1))
    assert message in str(caught.value)
