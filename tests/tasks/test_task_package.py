"""Reading a task directory: what is honoured, what is refused and how it is said."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, UnsupportedError, UsageError
from ramify.contracts.sandbox import BuildSpec, NetworkMode, NetworkPolicy
from ramify.contracts.task import (
    Artifact,
    CollectHook,
    IsolationLevel,
    McpServer,
    Task,
    TaskPackage,
)
from ramify.tasks.dockerfile import workdir_of_dockerfile
from ramify.tasks.package import read_task
from ramify.tasks.schema import check_task_toml
from ramify.tasks.skills import without_skills

FULL = """
schema_version = "1.4"
source = "here"
artifacts = ["/logs/artifacts", { source = "out", service = "main" }]

[task]
name = "org/name"
version = "2"
description = "About it"
authors = [{ name = "A", email = "a@example.com" }]
keywords = ["k"]

[metadata]
difficulty = "hard"
made = 2026-01-02

[verifier]
timeout_sec = 12
env = { KEY = "${KEY:-none}", PLAIN = "a ${KEY} b" }
user = 65534
network_mode = "no-network"

[agent]
timeout_sec = 34.5
user = "worker"
network_mode = "allowlist"
allowed_hosts = ["Example.com", "*.example.org", "host:8080"]

[environment]
build_timeout_sec = 90
cpus = 2
memory_mb = 512
storage_mb = 1024
os = "Linux"
gpus = 0
gpu_types = []
mcp_servers = []
env = { TOKEN = "${TOKEN}" }
workdir = "/srv/work/"

[environment.healthcheck]
command = "true"
retries = 5

[solution]
env = { S = "1" }

[ramify]
image_free = true
files = "environment/files"
setup = "environment/setup.sh"
outputs = ["answer.txt", "/var/out"]
needs = ["python3", "sqlite3"]
reward_range = [-1, 2]
isolation = "workdir"
"""


class Directory:
    """A task directory to break in one place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for relative, text in {
            "task.toml": 'version = "1.0"\n',
            "instruction.md": "Do it.\n",
            "environment/Dockerfile": "FROM debian\n",
            "environment/files/a.txt": "a\n",
            "environment/setup.sh": "true\n",
            "tests/test.sh": "true\n",
            "solution/solve.sh": "true\n",
        }.items():
            self.write(relative, text)

    def write(self, relative: str, text: str) -> None:
        (self.path / relative).parent.mkdir(parents=True, exist_ok=True)
        (self.path / relative).write_text(text)

    def toml(self, text: str) -> Directory:
        self.write("task.toml", text)
        return self

    def read(self, **environ: str) -> Task:
        return read_task(self.path, "set:item", environ)

    def package(self, **environ: str) -> TaskPackage:
        package = self.read(**environ).package
        assert package is not None
        return package


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "item")


def test_every_supported_field_is_honoured(directory: Directory) -> None:
    task = directory.toml(FULL).read(TOKEN="t", KEY="k")
    assert task.instruction == "Do it.\n"
    assert task.metadata["difficulty"] == "hard"
    assert task.metadata["made"] == "2026-01-02"
    assert task.metadata["package_info"] == {
        "name": "org/name",
        "version": "2",
        "description": "About it",
        "authors": [{"name": "A", "email": "a@example.com"}],
        "keywords": ["k"],
        "source": "here",
    }
    package = task.package
    assert package is not None
    hosts = ("example.com", "*.example.org", "host:8080")
    assert package.sandbox.network == NetworkPolicy(NetworkMode.ALLOWLIST, hosts)
    assert package.sandbox.build == BuildSpec(
        context=str(directory.path / "environment"), timeout_sec=90
    )
    assert (package.sandbox.image, package.sandbox.host_root) == (None, False)
    assert package.host_root_ok
    assert package.workdir == "/srv/work"
    assert package.sandbox.env == {"TOKEN": "t"}
    limits = package.sandbox.limits
    assert (limits.cpus, limits.memory_mb, limits.disk_mb) == (2, 512, 1024)
    assert package.verifier.env == {"KEY": "k", "PLAIN": "a ${KEY} b"}
    assert (package.verifier.user, package.verifier.timeout_sec) == ("65534", 12)
    assert package.verifier.network == NetworkPolicy()
    assert package.verifier.reward_range == (-1, 2)
    assert package.verifier.isolation is IsolationLevel.WORKDIR
    assert (package.agent_user, package.agent_timeout_sec) == ("worker", 34.5)
    assert package.solution is not None
    assert package.solution.env == {"S": "1"}
    assert package.healthcheck is not None
    assert (package.healthcheck.retries, package.healthcheck.timeout_sec) == (5, 30)
    assert (package.files, package.setup) == ("environment/files", "environment/setup.sh")
    assert package.outputs == ("answer.txt", "/var/out")
    assert package.artifacts == (Artifact("/logs/artifacts"), Artifact("out"))
    assert package.needs == ("python3", "sqlite3")


def test_defaults_are_those_of_the_format(directory: Directory) -> None:
    package = directory.toml("").package()
    assert package.sandbox.network == NetworkPolicy(NetworkMode.OPEN)
    assert package.verifier.network == NetworkPolicy(NetworkMode.OPEN)
    assert (package.agent_timeout_sec, package.verifier.timeout_sec) == (600, 600)
    assert package.sandbox.build is not None
    assert package.sandbox.build.timeout_sec == 600
    assert package.sandbox.workdir is None
    assert not package.host_root_ok
    assert package.outputs == ()


@pytest.mark.parametrize(
    ("text", "agent", "verifier"),
    [
        ("[environment]\nallow_internet = false", NetworkMode.NONE, NetworkMode.NONE),
        ("[environment]\nallow_internet = true", NetworkMode.OPEN, NetworkMode.OPEN),
        (
            '[environment]\nallow_internet = true\nnetwork_mode = "no-network"',
            NetworkMode.NONE,
            NetworkMode.NONE,
        ),
        ('[agent]\nnetwork_mode = "no-network"', NetworkMode.NONE, NetworkMode.OPEN),
        ("[ramify]", NetworkMode.OPEN, NetworkMode.NONE),
        ('[ramify]\n[verifier]\nnetwork_mode = "public"', NetworkMode.OPEN, NetworkMode.OPEN),
    ],
)
def test_network(
    directory: Directory, text: str, agent: NetworkMode, verifier: NetworkMode
) -> None:
    package = directory.toml(text).package()
    assert package.verifier.network is not None
    assert (package.sandbox.network.mode, package.verifier.network.mode) == (agent, verifier)


def test_legacy_sizes(directory: Directory) -> None:
    package = directory.toml('[environment]\nmemory = "4G"\nstorage = "512M"').package()
    assert (package.sandbox.limits.memory_mb, package.sandbox.limits.disk_mb) == (4096, 512)
    with pytest.raises(ConfigError, match=r"environment.memory: differs from memory_mb = 5"):
        directory.toml('[environment]\nmemory = "4G"\nmemory_mb = 5').read()
    with pytest.raises(ConfigError, match="is not a size"):
        directory.toml('[environment]\nmemory = "lots"').read()


def test_image_and_image_free(directory: Directory) -> None:
    both = '[environment]\ndocker_image = "debian"\n[ramify]\nimage_free = true'
    package = directory.toml(both).package()
    assert (package.sandbox.image, package.sandbox.build) == ("debian", None)
    assert (package.sandbox.host_root, package.host_root_ok) == (False, True)
    (directory.path / "environment" / "Dockerfile").unlink()
    package = directory.toml("[ramify]\nimage_free = true").package()
    assert (package.sandbox.image, package.sandbox.build) == (None, None)
    assert (package.sandbox.host_root, package.host_root_ok) == (True, True)
    assert package.sandbox.workdir == "/app"


UNSUPPORTED = [
    ('[environment]\nos = "windows"', "environment.os"),
    ("[environment]\ngpus = 1", "environment.gpus"),
    ('[environment]\ngpu_types = ["H100"]', "environment.gpu_types"),
    ('[environment.tpu]\ntype = "v4"', "environment.tpu"),
    ("[verifier.environment]\ngpus = 1", "verifier.environment.gpus"),
    ('artifacts = [{ source = "/a", service = "db" }]', "artifacts.service"),
    ('[[verifier.collect]]\ncommand = "x"\nservice = "db"', "verifier.collect.service"),
    ('schema_version = "2.0"', "schema_version"),
    (
        '[agent]\nnetwork_mode = "allowlist"\nallowed_hosts = ["10.0.0.0/8"]',
        "agent.allowed_hosts",
    ),
]


@pytest.mark.parametrize(("text", "field"), UNSUPPORTED)
def test_what_is_not_served_yet_is_refused_by_name(
    directory: Directory, text: str, field: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        directory.toml(text).read()
    assert str(caught.value).startswith(f"{directory.path}/task.toml: {field}: ")


@pytest.mark.parametrize(
    "relative",
    ["environment/singularity-compose.yaml", "trajectory.json"],
)
def test_files_that_are_not_served_yet_are_refused_by_name(
    directory: Directory, relative: str
) -> None:
    directory.write(relative, "x")
    with pytest.raises(UnsupportedError, match=relative):
        directory.read()


def test_empty_values_of_fields_not_served_yet_do_not_matter(directory: Directory) -> None:
    directory.toml(
        "steps = []\n[verifier]\ncollect = []\nenvironment_mode = 'shared'\n"
        "[environment]\ngpus = 0\ngpu_types = []\nmcp_servers = []\nskills_dir = ''\nos = 'linux'\n"
    ).read()


WRONG = [
    ("[agent]\ntimeout_secs = 3", "agent.timeout_secs: unknown key; did you mean `timeout_sec`?"),
    ("[agnet]", "agnet: unknown key; did you mean `agent`?"),
    ("[environment]\ngpu = 3", "environment.gpu: unknown key; did you mean `gpus`?"),
    ("[ramify]\noutput = []", "ramify.output: unknown key; did you mean `outputs`?"),
    (
        "[environment.healthcheck]\ncommand = 'x'\nretry = 1",
        "environment.healthcheck.retry: unknown key; did you mean `retries`?",
    ),
    ("[task]\nauthors = [{ mail = 'x' }]", "task.authors.mail: unknown key"),
    ("[environment.healthcheck]\nretries = 2", "environment.healthcheck.command: is required"),
    ("[agent]\ntimeout_sec = 'x'", "agent.timeout_sec: expected `float | null`, got `str`"),
    ("[agent]\ntimeout_sec = -1", "agent.timeout_sec: expected `float` > 0.0"),
    ("[agent]\ntimeout_sec = inf", "agent.timeout_sec: expected `float` <= "),
    ("[agent]\nuser = -1", "agent.user: expected `int` >= 0"),
    ("[environment]\nmemory_mb = -5", "environment.memory_mb: expected `int` >= 1"),
    ("agent = 3", "agent: expected `object`, got `int`"),
    ("a = 1\nb = [", "is not valid TOML: .*line 2"),
    ("schema_version = 1.4", "schema_version: expected a string"),
    ('version = "1.0"\nschema_version = "1.1"', "version: differs from `schema_version`"),
    ("[metadata]\nmodel = 'x'", "metadata: model: reserved"),
    ("[metadata]\npackage_info = 1\n[task]\nname = 'a'", "metadata.package_info: "),
    ("[agent]\nnetwork_mode = 'none'", "agent.network_mode: invalid enum value 'none'"),
    ("[agent]\nallowed_hosts = ['a.b']", "agent.allowed_hosts: only has a meaning with"),
    (
        "[agent]\nnetwork_mode = 'allowlist'\nallowed_hosts = ['http://a']",
        "agent.allowed_hosts: 'http://a' is not a host",
    ),
    ("[environment]\nworkdir = 'x'", "environment.workdir: must be an absolute path"),
    ("[environment]\nworkdir = '/a/../b'", "environment.workdir: must be an absolute path"),
    ("[environment.env]\nA = '${NOT_SET}'", "environment.env.A: NOT_SET is not set on this host"),
    ("[verifier.env]\n'A=B' = 'x'", "verifier.env: 'A=B' cannot be an environment variable"),
    ("[ramify]\nfiles = '../x'", "ramify.files: '../x' must be a path below the task"),
    ("[ramify]\nfiles = '/etc'", "ramify.files: '/etc' must be a path below the task"),
    ("[ramify]\nfiles = 'nowhere'", "ramify.files: no directory 'nowhere' in the task"),
    ("[ramify]\nsetup = 'environment'", "ramify.setup: no file 'environment' in the task"),
    ("[ramify]\noutputs = ['a/../../b']", "ramify.outputs: 'a/../../b' must name something"),
    ("[ramify]\noutputs = ['.']", "ramify.outputs: '.' must name something"),
    ("[ramify]\noutputs = ['a', './a']", "ramify.outputs: './a' is named twice"),
    ("[ramify]\nneeds = ['rm -rf']", "ramify.needs: 'rm -rf' is not the name of a program"),
    ("[ramify]\nreward_range = [1, 0]", "ramify.reward_range: must be"),
    ("[ramify]\nreward_range = [0, nan]", "ramify.reward_range: must be"),
    ("[ramify]\nisolation = 'none'", "ramify.isolation: invalid enum value 'none'"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_gets_one_line_with_file_and_field(
    directory: Directory, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        directory.toml(text).read()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{directory.path}/task.toml: ")
    pytest.raises(ConfigError, directory.read).match(
        message.replace("?", r"\?").replace("[", r"\[").replace("$", r"\$")
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("task.toml", "task.toml: is missing"),
        ("instruction.md", "instruction.md: is missing"),
        ("tests/test.sh", "tests/test.sh: is missing"),
        ("solution/solve.sh", "solution/solve.sh: is missing"),
        ("environment/Dockerfile", "the task needs environment/Dockerfile, "),
    ],
)
def test_what_is_missing_gets_one_line(directory: Directory, missing: str, message: str) -> None:
    (directory.path / missing).unlink()
    with pytest.raises(ConfigError, match=message) as caught:
        directory.read()
    assert "\n" not in str(caught.value)


def test_an_empty_or_binary_instruction_is_refused(directory: Directory) -> None:
    directory.write("instruction.md", " \n")
    with pytest.raises(ConfigError, match=r"instruction.md: is empty"):
        directory.read()
    (directory.path / "instruction.md").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"instruction.md: is not UTF-8"):
        directory.read()


def test_a_task_without_a_solution_is_fine(directory: Directory) -> None:
    (directory.path / "solution" / "solve.sh").unlink()
    (directory.path / "solution").rmdir()
    assert directory.package().solution is None


def test_a_task_survives_a_trip_through_json(directory: Directory) -> None:
    task = directory.toml(FULL).read(TOKEN="t")
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["steps", "agent", "env", "timeout_sec", "ramify", "x", "source"]),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_value_ends_in_anything_but_a_usage_error(value: Any) -> None:
    for key in ("agent", "environment", "artifacts", "task", "verifier", "metadata"):
        given = {"authors": value} if key == "task" else value
        with contextlib.suppress(UsageError):
            assert check_task_toml({key: given}, "f") is not None


@pytest.mark.parametrize(
    ("text", "workdir"),
    [
        ("FROM a", None),
        ("FROM a\nWORKDIR /x", "/x"),
        ("FROM a\nworkdir /x/\nWORKDIR y\n", "/x/y"),
        ("FROM a\nWORKDIR y\n", None),
        ("FROM a\nWORKDIR $HOME\n", None),
        ("FROM a AS one\nWORKDIR /one\nFROM b\nRUN x", None),
        ("FROM --platform=linux/amd64 a AS One\nWORKDIR /one\nFROM one\nRUN x", "/one"),
        ("FROM a\nRUN x && \\\n# c\n  WORKDIR /not\nWORKDIR \\\n  /x", "/x"),
        ("FROM a\nRUN <<EOF\nWORKDIR /not\nEOF\n", None),
        ('FROM a\nWORKDIR "/x y"\n', "/x y"),
    ],
)
def test_workdir_of_a_dockerfile(directory: Directory, text: str, workdir: str | None) -> None:
    assert workdir_of_dockerfile(text) == workdir
    directory.write("environment/Dockerfile", text)
    assert directory.package().sandbox.workdir == workdir


COLLECTION = """
FROM base
COPY --chown=a:b set/item/data set/item/solution /data/
COPY ["set/item/one two", "/data/"]
COPY --from=other /x /y
ADD https://example.com/x /z
COPY shared/file /
"""


@pytest.fixture
def collected(tmp_path: Path) -> Directory:
    made = Directory(tmp_path / "set/item")
    for name in ("data/a", "one two", "../../shared/file"):
        made.write(name, "x")
    made.write("environment/Dockerfile", COLLECTION)
    return made


def test_a_dockerfile_for_a_build_at_the_collections_root(collected: Directory) -> None:
    root = collected.path.parent.parent
    build = collected.package().sandbox.build
    assert build == BuildSpec(
        context=str(root),
        dockerfile="set/item/environment/Dockerfile",
        sources=("set/item/data", "set/item/solution", "set/item/one two", "shared/file"),
    )


@pytest.mark.parametrize(
    "change",
    [
        ("shared/file", "shared/none"),  # not all is there
        ("shared/file", "."),  # would give the image the tests
        ("shared/file", "set"),
        ("shared/file", "shared/../../secret"),  # leads out
        ("shared/file", "shared/$X"),  # cannot be told
        ("shared/file", "shared/*"),
        ("set/item/", "set/other/"),  # another task's
    ],
)
def test_a_dockerfile_that_is_built_beside_itself(
    collected: Directory, change: tuple[str, str]
) -> None:
    collected.write("../other/data/a", "x")
    collected.write("../other/solution/a", "x")
    collected.write("../other/one two", "x")
    (collected.path.parent.parent.parent / "secret").write_text("x")
    collected.write("environment/Dockerfile", COLLECTION.replace(*change))
    build = collected.package().sandbox.build
    assert build == BuildSpec(context=str(collected.path / "environment"))


def test_what_is_beside_the_dockerfile_is_built_there(collected: Directory) -> None:
    for name in ("data", "solution", "one two"):
        collected.write(f"environment/set/item/{name}", "x")
    collected.write("environment/shared/file", "x")
    build = collected.package().sandbox.build
    assert build == BuildSpec(context=str(collected.path / "environment"))


def test_such_a_build_without_skills_has_its_sources_and_nothing_else(
    collected: Directory, tmp_path: Path
) -> None:
    for name in ("data/tips/SKILL.md", "data/tips/more/how.md", "tests/tips/SKILL.md"):
        collected.write(name, "x")
    package = without_skills(collected.read(), tmp_path / "home").package
    assert package is not None
    assert package.sandbox.build is not None
    root = Path(package.sandbox.build.context)
    assert package.sandbox.build.dockerfile == "set/item/environment/Dockerfile"
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    assert files == [
        "set/item/data/a",
        "set/item/environment/Dockerfile",
        "set/item/one two",
        "set/item/solution/solve.sh",
        "shared/file",
    ]
    assert (root / "set/item/data/tips/more").is_dir()


MULTI = """
multi_step_reward_strategy = "final"
artifacts = [{ source = "log", destination = "kept/log", exclude = ["*.tmp"] }]

[agent]
timeout_sec = 40

[verifier]
env = { A = "1", B = "1" }
user = "judge"
collect = [{ command = "dump", timeout_sec = 3, user = 5 }]

[environment]
skills_dir = "/skills/"
[[environment.mcp_servers]]
name = "files"
transport = "http"
url = "http://127.0.0.1/mcp"

[[steps]]
name = "first"
min_reward = 1

[[steps]]
name = "second"
artifacts = ["more"]
min_reward = { reward = 0.5, recall = 0.2 }
agent = { timeout_sec = 7 }
[steps.verifier]
timeout_sec = 9
env = { B = "2" }
[steps.healthcheck]
command = "true"
"""


@pytest.fixture
def multi(directory: Directory) -> Directory:
    (directory.path / "instruction.md").unlink()
    for name in ("first", "second"):
        directory.write(f"steps/{name}/instruction.md", f"The {name}.\n")
    directory.write("steps/first/solution/solve.sh", "true\n")
    directory.write("steps/second/tests/test.sh", "true\n")
    directory.write("steps/second/workdir/setup.sh", "true\n")
    return directory.toml(MULTI)


def test_every_field_of_steps_is_honoured(multi: Directory) -> None:
    task = multi.read()
    package = task.package
    assert package is not None
    assert task.instruction == "The first.\n"
    assert package.reward_strategy == "final"
    assert package.skills_dir == "/skills"
    assert package.mcp_servers == (McpServer("files", "streamable-http", "http://127.0.0.1/mcp"),)
    assert package.artifacts == (Artifact("log", "kept/log", ("*.tmp",)),)
    first, second = package.steps
    assert (first.name, first.min_reward, first.agent_timeout_sec) == ("first", {"reward": 1}, 40)
    assert (first.verifier.tests, first.verifier.more_tests) == ("tests", ())
    assert first.verifier.timeout_sec == 600
    assert first.verifier.collect == (CollectHook("dump", 3, "5"),)
    assert first.solution is not None
    assert first.solution.path == "steps/first/solution"
    assert second.min_reward == {"reward": 0.5, "recall": 0.2}
    assert (second.agent_timeout_sec, second.verifier.timeout_sec) == (7, 9)
    assert (second.verifier.tests, second.verifier.more_tests) == (
        "tests",
        ("steps/second/tests",),
    )
    assert (second.verifier.env, second.verifier.user) == ({"A": "1", "B": "2"}, "judge")
    assert (second.files, second.setup) == ("steps/second/workdir", "setup.sh")
    assert second.healthcheck is not None
    assert second.solution is not None
    assert second.solution.path == "solution"
    there = task.at_step(1)
    assert there.instruction == "The second.\n"
    assert there.package is not None
    assert there.package.at == 1
    assert there.package.verifier == second.verifier
    assert [artifact.source for artifact in there.package.artifacts] == ["log", "more"]
    assert msgspec.json.decode(msgspec.json.encode(there), type=Task) == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"second"', '"FIRST"'), "steps.name: 'FIRST' is there twice"),
        (('"second"', '"../x"'), "steps.name: '../x' cannot be the name"),
        (('"second"', '"third"'), "steps/third/instruction.md: is missing"),
        (("timeout_sec = 7", 'user = "other"'), "steps.agent.user: step 'second'"),
        (("timeout_sec = 7", 'network_mode = "no-network"'), "steps.agent.network_mode: step"),
        (('url = "http://127.0.0.1/mcp"', ""), "environment.mcp_servers: 'files' needs `url`"),
        (('"kept/log"', '"../log"'), "artifacts.destination: '../log'"),
        (("[[steps]]", "[ramify]\nisolation = 'live'\n[[steps]]"), "ramify.isolation: has no"),
    ],
)
def test_wrong_steps(multi: Directory, change: tuple[str, str], message: str) -> None:
    multi.toml(MULTI.replace(*change, 1))
    with pytest.raises(UsageError) as caught:
        multi.read()
    assert message in str(caught.value)


def test_a_separate_verifier_without_an_environment_starts_as_the_agent_did(
    directory: Directory,
) -> None:
    settings = directory.toml('[verifier]\nenvironment_mode = "separate"').package().verifier
    assert (settings.separate, settings.sandbox, settings.tests) == (True, None, "tests")


def test_a_separate_verifier_with_limits_of_its_own_keeps_the_tasks_image(
    directory: Directory,
) -> None:
    text = '[environment]\ndocker_image = "debian"\n[verifier.environment]\ncpus = 1'
    settings = directory.toml(text).package().verifier
    assert settings.sandbox is not None
    assert (settings.separate, settings.sandbox.image, settings.tests) == (True, "debian", "tests")
    assert settings.sandbox.limits.cpus == 1


def test_a_separate_verifier_on_its_own_image_has_its_tests_there(directory: Directory) -> None:
    directory.write("tests/Dockerfile", "FROM debian\nWORKDIR /judge\n")
    text = '[verifier.environment]\nnetwork_mode = "no-network"'
    settings = directory.toml(text).package().verifier
    assert settings.sandbox is not None
    assert settings.sandbox.build == BuildSpec(str(directory.path / "tests"))
    assert (settings.tests, settings.sandbox.workdir) == ("", "/judge")
    assert settings.network == NetworkPolicy(NetworkMode.NONE)
    shared = text + '\n[verifier]\nenvironment_mode = "shared"'
    with pytest.raises(ConfigError, match="verifier.environment: has no meaning"):
        directory.toml(shared).read()


def test_a_compose_file_makes_a_compose_sandbox(directory: Directory) -> None:
    directory.write("environment/docker-compose.yaml", "services: {main: {build: .}}\n")
    spec = directory.toml('[environment]\ncpus = 2\nenv = { K = "v" }').package().sandbox
    assert spec.compose is not None
    assert spec.compose.file == str(directory.path / "environment" / "docker-compose.yaml")
    assert (spec.compose.main, spec.build, spec.image) == ("main", None, None)
    assert (spec.compose.env["K"], spec.compose.env["CPUS"]) == ("v", "2")


def test_a_compose_file_that_is_part_of_the_problem_is_not_run(directory: Directory) -> None:
    directory.write("environment/docker-compose.yml", "services: {web: {image: x}}\n")
    assert directory.package().sandbox.compose is None
    (directory.path / "environment" / "Dockerfile").unlink()
    assert directory.package().sandbox.compose is not None
    spec = directory.toml('[environment]\ndocker_image = "debian"').package().sandbox
    assert (spec.compose, spec.image) == (None, "debian")


def test_the_canary_is_not_for_the_agent(directory: Directory) -> None:
    directory.write("instruction.md", "# data canary GUID 1\n<!-- canary -->\n\nDo it.\n")
    assert directory.read().instruction == "Do it.\n"
