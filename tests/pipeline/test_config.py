"""`agent.yaml`: what it says is what runs; what is wrong is told with line and remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.apps.pipeline.config import agent_schema, parse_pipeline, read_pipeline
from ramify.apps.pipeline.records import CacheSpec, PipelineSpec, Retention, StepSpec
from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import Limits

SEED = """\
verification:
  steps:
    - name: install
      command: npm ci
    - name: typecheck
      command: npm run typecheck
    - name: lint
      command: npm run lint
    - name: build
      command: npm run build
    - name: test
      command: npm test
"""


def test_the_example_of_the_specification() -> None:
    commands = ["npm ci", "npm run typecheck", "npm run lint", "npm run build", "npm test"]
    names = ["install", "typecheck", "lint", "build", "test"]
    steps = tuple(StepSpec(n, c) for n, c in zip(names, commands, strict=True))
    assert parse_pipeline(SEED.encode()) == PipelineSpec(steps)


FULL = """\
# other tools have their own keys here, whatever they hold
on: [push, {deep: !their-tag 1}]
model: gpt
verification:
  timeout: 1h30m
  grace: 0.5
  repo_write: deny
  image: ghcr.io/a/b:1.2@sha256:0123
  protected_paths: [tests/**, "package-lock.json"]
  protected: restore
  secrets: [NPM_TOKEN]
  pass_env: [LANG]
  env: &common {CI: true, MODE: 0755, VERSION: 3.10, EMPTY: "", QUOTED: 'yes', DAY: 2020-01-01}
  writable: [build]
  cache: {key: [package-lock.json]}
  retention: {runs: 3, max_bytes: 1.5GiB}
  snapshot: copy
  limits: {memory: 2GiB, disk: 512M, cpus: 0.5, pids: 99}
  max_artifact_bytes: 1000000
  steps:
    - name: on
      command: yes
    - name: test it
      command: |
        # first
        make
        make test
      env: *common
      cwd: ./sub//dir
      shell: bash
      timeout: 90
      network: packages
      allow_exit_codes: [0, 5]
      background: true
      artifacts: ["dist/*.whl"]
      junit: ["**/junit.xml"]
    - {name: z, command: "true", shell: [zsh, -c], timeout: 250ms}
"""


def test_every_key() -> None:
    common = {
        "CI": "true", "MODE": "0755", "VERSION": "3.10", "EMPTY": "", "QUOTED": "yes",
        "DAY": "2020-01-01",
    }  # fmt: skip
    assert parse_pipeline(FULL.encode()) == PipelineSpec(
        steps=(
            StepSpec("on", "yes"),
            StepSpec(
                "test it",
                "# first\nmake\nmake test\n",
                env=common,
                cwd="sub/dir",
                shell=("bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"),
                timeout_sec=90.0,
                network="packages",
                allow_exit_codes=(0, 5),
                background=True,
                artifacts=("dist/*.whl",),
                junit=("**/junit.xml",),
            ),
            StepSpec("z", "true", shell=("zsh", "-c"), timeout_sec=0.25),
        ),
        timeout_sec=5400.0,
        grace_sec=0.5,
        repo_write="deny",
        image="ghcr.io/a/b:1.2@sha256:0123",
        protected_paths=("tests/**", "package-lock.json"),
        protected="restore",
        secrets=("NPM_TOKEN",),
        pass_env=("LANG",),
        env=common,
        writable=("build",),
        cache=CacheSpec(("package-lock.json",)),
        retention=Retention(3, 3 * 512 * 1024**2),
        snapshot="copy",
        limits=Limits(memory_mb=2048, disk_mb=512, cpus=0.5, pids=99),
        max_artifact_bytes=1_000_000,
    )


def test_globs_of_the_pipeline_are_looked_for_once() -> None:
    text = SEED.replace("  steps", "  junit: [out/*.xml]\n  artifacts: [dist]\n  steps")
    *before, last = parse_pipeline(text.encode()).steps
    assert (last.junit, last.artifacts) == (("out/*.xml",), ("dist",))
    assert not any(step.junit or step.artifacts for step in before)


def test_every_field_of_the_records_can_be_set() -> None:
    pipeline = agent_schema()["properties"]["verification"]["properties"]
    step = pipeline["steps"]["items"]["properties"]
    renamed = {"timeout": "timeout_sec", "grace": "grace_sec"}
    assert {renamed.get(k, k) for k in pipeline} == {
        *PipelineSpec.__struct_fields__, "artifacts", "junit",
    }  # fmt: skip
    assert {renamed.get(k, k) for k in step} == set(StepSpec.__struct_fields__)


STEP = "    - name: test\n      command: make\n"


def pipeline(line: str) -> str:
    """A good file but for a line (the second) of the pipeline."""
    return f"verification:\n  {line}\n  steps:\n{STEP}"


def step(line: str) -> str:
    """A good file but for a line (the fifth) of its step."""
    return f"verification:\n  steps:\n{STEP}      {line}\n"


V, S = "verification", "verification.steps[0]"
ALWAYS = "the whole pipeline always runs"

# file → where, and words of what is said
WRONG: list[tuple[str, str, str]] = [
    ("", "", "declares no pipeline; write 'verification: {steps:"),
    ("# nothing\n", "", "declares no pipeline"),
    ("- a\n", "", "declares no pipeline"),
    ("text", "", "declares no pipeline"),
    ("a: 1\n", "", "has no `verification`; write"),
    ("verification:\n", ":1: verification", "must be a table of keys and values"),
    ("a: 1\n\nverification: []\n", ":3: verification", "must be a table"),
    ("verification: {}\n", ":1: verification", "lacks `steps`"),
    ("verification:\n  steps:\n", ":2: verification.steps", "must be a list"),
    ("verification:\n  steps: []\n", ":2: verification.steps", "would pass whatever is there"),
    ("verification:\n  steps: make\n", ":2: verification.steps", "must be a list"),
    ("verification:\n  steps:\n    - make\n", f":3: {S}", "must be a table"),
    ("verification:\n  steps:\n    - name: a\n", f":3: {S}", "lacks `command`"),
    ("verification:\n  steps:\n    - command: a\n", f":3: {S}", "lacks `name`"),
    ("verification:\n  steps:\n    - ~\n", f":3: {S}", "must be a table"),
    ("a: [1\nb: 2\n", ":2", "is not YAML: did not find expected ',' or ']'"),
    ("a: 1\n\tb: 2\n", ":2", "is not YAML"),
    ("a: 'x\n", ":2", "is not YAML"),
    ("a: 1\n---\nb: 2\n", ":2", "is not YAML: but found another document"),
    ("a: *b\n", ":1", "is not YAML: found undefined alias"),
    ("a: 1\nb: \x01\n", ":2", "is not YAML: control characters are not allowed"),
    ("verification: 1\nb: 1\nverification: 2\n", ":3: verification", "(first on line 1)"),
    (pipeline("timeout: 1\n  timeout: 2"), f":3: {V}.timeout", "second time (first on line 2)"),
    (step("name: again"), f":5: {S}.name", "second time (first on line 3)"),
    (step("env: {A: 1, A: 2}"), f":5: {S}.env.A", "second time"),
    (pipeline("tiemout: 10m"), f":2: {V}.tiemout", "did you mean `timeout`?"),
    (pipeline("zzz: 1"), f":2: {V}.zzz", "no such key; known are: artifacts, cache, env"),
    (pipeline("protected-paths: []"), f":2: {V}.protected-paths", "`protected_paths`"),
    (pipeline("services: {}"), f":2: {V}.services", "with `background: true`"),
    (step("needs: [build]"), f":5: {S}.needs", "in the order in which they stand"),
    (pipeline("protected: restore"), f":2: {V}.protected", "and there are none"),
    (pipeline("writable: [.]"), f":2: {V}.writable[0]", "is everything; use `repo_write: discard`"),
    ("protected_paths: [a]\n" + pipeline("timeout: 1"), ":1: protected_paths", "move it into"),
    ("repo_write: deny\n" + pipeline("timeout: 1"), ":1: repo_write", "move it into"),
    (pipeline("protected_paths: [':/../a']"), f":2: {V}.protected_paths[0]", "within the rep"),
    (pipeline("protected_paths: [':/']"), f":2: {V}.protected_paths[0]", "within the rep"),
    (pipeline("stages: []"), f":2: {V}.stages", "here it is called `steps`"),
    (step("run: make"), f":5: {S}.run", "here it is called `command`"),
    (step("working-directory: a"), f":5: {S}.working-directory", "here it is called `cwd`"),
    (step("timeout-minutes: 3"), f":5: {S}.timeout-minutes", "here it is called `timeout`"),
    (step("if: false"), f":5: {S}.if", ALWAYS),
    (step("skip: true"), f":5: {S}.skip", ALWAYS),
    (step("only: [a]"), f":5: {S}.only", ALWAYS),
    (step("when: never"), f":5: {S}.when", ALWAYS),
    (step("allow_failure: true"), f":5: {S}.allow_failure", "`allow_exit_codes`"),
    (step("continue-on-error: true"), f":5: {S}.continue-on-error", ALWAYS),
    (step("enabled: false"), f":5: {S}.enabled", ALWAYS),
    (step("retries: 3"), f":5: {S}.retries", ALWAYS),
    (pipeline("skip: [test]"), f":2: {V}.skip", ALWAYS),
    (pipeline("only: [test]"), f":2: {V}.only", ALWAYS),
    (step("? [a, b]\n      : c"), f":5: {S}", "a key that is not a word"),
    (step("<<: {env: {}}"), f":5: {S}", "merging) is not supported"),
    (step("? !!binary aa\n      : c"), f":5: {S}.aa", "no such key"),
    (pipeline("timeout: 10 parsecs"), f":2: {V}.timeout", "write seconds, or such as 90s, 10m"),
    (pipeline("timeout: 0"), f":2: {V}.timeout", "more than 0"),
    (pipeline("timeout: -5"), f":2: {V}.timeout", "'-5' is no duration"),
    (pipeline("timeout: 8d"), f":2: {V}.timeout", "at most 7 days"),
    (pipeline("timeout: 1:30"), f":2: {V}.timeout", "'1:30' is no duration"),
    (pipeline("timeout: 010"), f":2: {V}.timeout", "'010' is no duration"),
    (pipeline("timeout: .inf"), f":2: {V}.timeout", "no duration"),
    (pipeline("timeout: .nan"), f":2: {V}.timeout", "no duration"),
    (pipeline("timeout: 1e3"), f":2: {V}.timeout", "no duration"),
    (pipeline("timeout:"), f":2: {V}.timeout", "is empty"),
    (pipeline("timeout: [1]"), f":2: {V}.timeout", "must be a number, not a list"),
    (pipeline("timeout: !sec 5"), f":2: {V}.timeout", "has the tag '!sec'"),
    (pipeline("repo_write: yes"), f":2: {V}.repo_write", "guard or deny or discard, not 'yes'"),
    (pipeline("snapshot: off"), f":2: {V}.snapshot", "overlay or copy, not 'off'"),
    (pipeline("image: 'a b'"), f":2: {V}.image", "is no name of an image"),
    (pipeline("image: --privileged"), f":2: {V}.image", "is no name of an image"),
    (pipeline("env: [A=1]"), f":2: {V}.env", "such as `{CI: 1}`"),
    (pipeline("env: {A-B: 1}"), f":2: {V}.env.A-B", "no name of a variable"),
    (pipeline("env: {A: }"), f":2: {V}.env.A", "is empty"),
    (pipeline("env: {A: [1]}"), f":2: {V}.env.A", "not a list"),
    (pipeline('env: {A: "a\\0b"}'), f":2: {V}.env.A", "no program can be given"),
    (pipeline("secrets: NPM_TOKEN"), f":2: {V}.secrets", "must be a list"),
    (pipeline("secrets: {NPM_TOKEN: abc}"), f":2: {V}.secrets", "must be a list"),
    (pipeline("secrets: ['A=b']"), f":2: {V}.secrets[0]", "its value comes from where"),
    (pipeline("protected_paths: [/etc]"), f":2: {V}.protected_paths[0]", "within the repository"),
    (pipeline("protected_paths: [a/../../b]"), f":2: {V}.protected_paths[0]", "within the rep"),
    (pipeline("protected_paths: [':!a']"), f":2: {V}.protected_paths[0]", "within the rep"),
    (pipeline("protected_paths: ['']"), f":2: {V}.protected_paths[0]", "within the rep"),
    (pipeline("protected: maybe"), f":2: {V}.protected", "fail or restore"),
    (pipeline("cache: true"), f":2: {V}.cache", "must say what it depends on"),
    (pipeline("cache: no"), f":2: {V}.cache", "true or false, not 'no'"),
    (pipeline("cache: {key: []}"), f":2: {V}.cache", "names no file"),
    (pipeline("cache: {}"), f":2: {V}.cache", "lacks `key`"),
    (pipeline("retention: {runs: 0}"), f":2: {V}.retention.runs", "from 1 to"),
    (pipeline("retention: {runs: 010}"), f":2: {V}.retention.runs", "not '010'"),
    (pipeline("retention: {runs: 0x10}"), f":2: {V}.retention.runs", "not '0x10'"),
    (pipeline("retention: {runs: 1_0}"), f":2: {V}.retention.runs", "not '1_0'"),
    (pipeline("retention: {runs: '5'}"), f":2: {V}.retention.runs", "not '5'"),
    (pipeline("retention: {runs: true}"), f":2: {V}.retention.runs", "not 'true'"),
    (pipeline("retention: {runs: 1.0}"), f":2: {V}.retention.runs", "not '1.0'"),
    (pipeline("retention: {max_bytes: lots}"), f":2: {V}.retention.max_bytes", "such as 512MiB"),
    (pipeline("retention: {max_bytes: 0}"), f":2: {V}.retention.max_bytes", "more than 0"),
    (pipeline("limits: {memory: 512}"), f":2: {V}.limits.memory", "did you forget the unit?"),
    (pipeline("limits: {memory: 5 parsec}"), f":2: {V}.limits.memory", "is no size"),
    (pipeline("limits: {cpus: all}"), f":2: {V}.limits.cpus", "number of cores"),
    (pipeline("limits: {ram: 1GiB}"), f":2: {V}.limits.ram", "known are: cpus, disk, memory"),
    (step("cwd: /tmp"), f":5: {S}.cwd", "relative to it, not '/tmp'"),
    (step("cwd: .."), f":5: {S}.cwd", "relative to it"),
    (step("shell: fish"), f":5: {S}.shell", "sh, bash, or a list"),
    (step("shell: []"), f":5: {S}.shell", "name a program"),
    (step("network: on"), f":5: {S}.network", "none or packages or full, not 'on'"),
    (step("allow_exit_codes: 5"), f":5: {S}.allow_exit_codes", "such as `[5]`"),
    (step("allow_exit_codes: [256]"), f":5: {S}.allow_exit_codes[0]", "from 0 to 255, not '256'"),
    (step("allow_exit_codes: [x]"), f":5: {S}.allow_exit_codes[0]", "from 0 to 255"),
    (step("background: yes"), f":5: {S}.background", "true or false, not 'yes'"),
    (step("artifacts: dist"), f":5: {S}.artifacts", "must be a list"),
    (step("artifacts: [../x]"), f":5: {S}.artifacts[0]", "within the repository"),
    (SEED.replace("npm ci", "''"), f":4: {S}.command", "is empty"),
    (SEED.replace("npm ci", "'# npm ci'"), f":4: {S}.command", "nothing but comments"),
    (SEED.replace("npm ci", ""), f":4: {S}.command", "is empty"),
    (SEED.replace("npm ci", "[npm, ci]"), f":4: {S}.command", "must be a text, not a list"),
    (SEED.replace(": install", ": ''"), f":3: {S}.name", "one line"),
    (SEED.replace(": install", ': "a\\nb"'), f":3: {S}.name", "one line"),
    (SEED.replace(": install", ': "a\\e[31m"'), f":3: {S}.name", "one line"),
    (SEED.replace(": install", ": " + "x" * 201), f":3: {S}.name", "200 characters"),
    ("a: " + "[" * 5000, ":1", "nested too deep"),
    ("a: " + "{a: " * 5000, ":1", "nested too deep"),
    ("a:\n" + "- b\n" * 250_000, ":", "too long"),
    ("#" * 1_048_577, "", "is larger than 1048576 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_told_with_its_line(text: str, where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text.encode(), "agent.yaml")
    message = str(caught.value)
    assert message.startswith(f"agent.yaml{where}")
    assert said in message
    assert "\n" not in message
    assert len(message) < 600


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match=r"agent.yaml:2: is not UTF-8 text"):
        parse_pipeline(b"a: 1\nb: \xff\n")


def test_a_byte_order_mark_and_windows_lines() -> None:
    text = SEED.replace("\n", "\r\n").encode()
    assert parse_pipeline(b"\xef\xbb\xbf" + text) == parse_pipeline(SEED.encode())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="agent.yaml: is not there; `ramify verify init`"):
        read_pipeline(tmp_path / "agent.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_pipeline(tmp_path)


def test_aliases_do_not_multiply() -> None:
    env = ", ".join(f"V{n}: 1" for n in range(2000))
    steps = "\n".join(f"    - {{name: s{n}, command: x, env: *e}}" for n in range(2000))
    text = f"verification:\n  env: &e {{{env}}}\n  steps:\n{steps}\n"
    with pytest.raises(ConfigError, match="counting those that aliases stand for"):
        parse_pipeline(text.encode())


def test_a_list_within_itself() -> None:
    with pytest.raises(ConfigError, match="must be a table"):
        parse_pipeline(b"verification:\n  steps: &a [*a]\n")


WORDS = st.sampled_from(
    ["verification", "steps", "name", "command", "env", "timeout", "cache", "key", "limits", "a",
     "true", "no", "1", "-1", "0o7", "1:2", "null", "~", "''", "[]", "{}", "*x", "&x", "!t", "<<",
     ":", "-", "?", "|", ">", "\t", "\n", "\n  ", "\n    - ", " ", ", ", "[", "]", "{", "}", "#",
     "'", '"', "\\", "%", "@", "---", "...", "\x85", "\u2028", "é", "10m", "2020-13-45"]
)  # fmt: skip


def understood(data: bytes) -> bool:
    """Whether it is a pipeline; if not, that is said as it should be."""
    try:
        return bool(parse_pipeline(data).steps)
    except ConfigError as error:
        said = str(error)
    assert re.match(r"agent\.yaml(:\d+)?: ", said)
    assert "\n" not in said
    return False


@given(st.lists(WORDS, max_size=30).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    for data in (text, f"verification:\n  {text}", f"{SEED}      {text}", f"{FULL}\n{text}"):
        understood(data.encode())


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    understood(data)


@given(st.data())
def test_no_change_of_a_good_file_breaks_the_reader(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(FULL)))
    cut = data.draw(st.integers(0, 12))
    text = FULL[:at] + data.draw(WORDS) + FULL[at + cut :]
    understood(text.encode())
