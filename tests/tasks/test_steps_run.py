"""Multi-step tasks, separate verifiers, artifacts and skills, run on a real sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ramify
from ramify.contracts.agent import AgentCapabilities
from ramify.contracts.config import RolloutConfig, SkillMode
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.result import RolloutResult
from ramify.contracts.sandbox import BuildSpec
from ramify.envs.demands import check_agent
from ramify.planes.agent.nop import NopAgent
from ramify.tasks.package import read_task
from ramify.tasks.skills import without_skills

STEPS = """
artifacts = [
    "log.txt",
    { source = "made", destination = "kept/made", exclude = ["*.tmp"] },
    "missing.txt",
    { source = "made/a", destination = "kept/made/a" },
]
[verifier]
collect = [{ command = "echo collected >> log.txt" }, { command = "exit 3" }]
[environment]
network_mode = "no-network"
[ramify]
image_free = true
[[steps]]
name = "one"
min_reward = 0.5
healthcheck = { command = "test -f ready", interval_sec = 0.1 }
[[steps]]
name = "two"
"""
GRADE = """
if {condition}; then echo 1; else echo 0; fi > "$RAMIFY_ROOT/logs/verifier/reward.txt"
"""
FILES = {
    "task.toml": STEPS,
    "steps/one/instruction.md": "Make it.\n",
    "steps/one/workdir/setup.sh": "touch ready\n",
    "steps/one/workdir/given.txt": "given\n",
    "steps/one/solution/solve.sh": (
        "mkdir made; echo 1 | tee made/a made/b.tmp; ln -s a made/link\n"
    ),
    "steps/one/tests/test.sh": GRADE.format(condition="[ -f made/a ] && [ -f given.txt ]"),
    "steps/two/instruction.md": "Go on.\n",
    # The second step must find its first one's work, and nothing of how that was graded.
    "steps/two/solution/solve.sh": (
        '[ -f made/a ] && [ ! -e "$RAMIFY_ROOT/tests/test.sh" ] '
        '&& [ ! -e "$RAMIFY_ROOT/logs/verifier/reward.txt" ] && echo 2 > second\n'
    ),
    "steps/two/tests/test.sh": GRADE.format(condition="[ -f second ]"),
}


def write(root: Path, files: dict[str, str]) -> Path:
    for relative, text in files.items():
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).write_text(text)
    return root


async def play(task: Path, out: Path, agent: str) -> RolloutResult:
    options = ramify.RunOptions(out=out, max_retries=0)
    report = await ramify.run(task, agent=agent, sandbox="bare", options=options)
    return report.results[0]


async def test_two_steps(tmp_path: Path) -> None:
    task = write(tmp_path / "task", FILES)
    result = await play(task, tmp_path / "out", "oracle")
    assert (result.outcome, result.reward, result.error) == (ramify.Outcome.SCORED, 1.0, None)
    assert result.items == {"one.reward": 1.0, "two.reward": 1.0}
    kept = next((tmp_path / "out" / "rollouts").iterdir()) / "steps"
    first = kept / "one" / "artifacts"
    assert (first / "log.txt").read_text() == "collected\n"
    assert (kept / "two" / "artifacts" / "log.txt").read_text() == "collected\n" * 2
    assert sorted(path.name for path in (first / "kept" / "made").iterdir()) == ["a"]
    said = {
        entry["source"]: entry for entry in json.loads((kept / "one/artifacts.json").read_text())
    }
    assert said["missing.txt"]["left_out"] == "it does not exist"
    assert said["made/a"]["left_out"] == "an earlier artifact has its place"
    assert said["made"]["files"] == 1
    assert [entry.partition(":")[0] for entry in said["made"]["dropped"]] == ["link"]


async def test_a_step_that_falls_short_is_the_last(tmp_path: Path) -> None:
    result = await play(write(tmp_path / "task", FILES), tmp_path / "out", "nop")
    assert (result.reward, result.items) == (0.0, {"one.reward": 0.0})


SEPARATE = """
artifacts = [{ source = "out", exclude = ["*.tmp"] }]
[verifier]
environment_mode = "separate"
[environment]
network_mode = "no-network"
[ramify]
image_free = true
"""


@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
async def test_a_separate_verifier_sees_only_what_is_declared(
    tmp_path: Path, agent: str, reward: float
) -> None:
    files = {
        "task.toml": SEPARATE,
        "instruction.md": "Make it.\n",
        "solution/solve.sh": (
            "mkdir out; echo 1 | tee out/a out/b.tmp undeclared\n"
            'echo note > "$RAMIFY_ROOT/logs/artifacts/note"\n'
        ),
        "tests/test.sh": GRADE.format(
            condition="[ -f out/a ] && [ ! -e out/b.tmp ] && [ ! -e undeclared ] "
            '&& [ -f "$RAMIFY_ROOT/logs/artifacts/note" ]'
        ),
    }
    result = await play(write(tmp_path / "task", files), tmp_path / "out", agent)
    assert (result.outcome, result.reward) == (ramify.Outcome.SCORED, reward)
    assert result.grader_isolation == "outputs"


class Bare(NopAgent):
    """An agent that serves nothing beyond prompts."""

    name = "plain"

    def capabilities(self) -> AgentCapabilities:
        return AgentCapabilities()


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (
            '[[environment.mcp_servers]]\nname = "files"\nurl = "http://x"',
            SkillMode.NO_SKILL,
            r"set:item offers MCP servers \(files\), which the agent `plain` cannot use",
        ),
        ('[environment]\nskills_dir = "/s"', SkillMode.WITH_SKILL, "set:item offers skills"),
        ('[[steps]]\nname = "one"\n[[steps]]\nname = "two"', SkillMode.NO_SKILL, "has 2 steps"),
    ],
)
def test_what_an_agent_cannot_take_up_is_refused(
    tmp_path: Path, text: str, mode: SkillMode, message: str
) -> None:
    files = {**FILES, "task.toml": text, "instruction.md": "x\n", "tests/test.sh": "true\n"}
    files["environment/Dockerfile"] = "FROM debian\n"
    task = read_task(write(tmp_path, files), "set:item", {})
    with pytest.raises(UnsupportedError, match=message):
        check_agent(task, Bare(), mode)
    check_agent(task, NopAgent(), mode)


def test_skills_are_not_in_the_image_of_a_run_without_skills(tmp_path: Path) -> None:
    files = {
        "task.toml": "",
        "instruction.md": "x\n",
        "tests/test.sh": "true\n",
        "environment/Dockerfile": "FROM debian\nCOPY skills /skills\n",
        "environment/data/a.txt": "a\n",
        "environment/skills/one/SKILL.md": "how\n",
        "environment/skills/one/scripts/run.py": "1\n",
        "environment/skills/README.md": "about\n",
    }
    task = read_task(write(tmp_path / "task", files), "set:item", {})
    hidden = without_skills(task, tmp_path / "home")
    assert hidden.package is not None
    build = hidden.package.sandbox.build
    assert isinstance(build, BuildSpec)
    context = Path(build.context)
    found = sorted(p.relative_to(context).as_posix() for p in context.rglob("*") if p.is_file())
    assert found == ["Dockerfile", "data/a.txt", "skills/README.md"]
    assert (context / "skills" / "one").is_dir(), "a Dockerfile may still copy it"
    assert without_skills(task, tmp_path / "home") == hidden, "made once"
    assert task.package is not None
    assert hidden.package.digest == task.package.digest
    plain = write(tmp_path / "plain", {k: v for k, v in files.items() if "skills" not in k})
    other = read_task(plain, "set:item", {})
    assert without_skills(other, tmp_path / "home") is other


async def test_skills_inside_are_hidden_in_a_run_without_skills(tmp_path: Path) -> None:
    files = {
        "task.toml": '[environment]\nnetwork_mode = "no-network"\nskills_dir = "/app/skills"\n'
        '[ramify]\nimage_free = true\nfiles = "environment"\nisolation = "live"\n',
        "instruction.md": "x\n",
        "environment/skills/one/SKILL.md": "how\n",
        "tests/test.sh": GRADE.format(condition="[ -f skills/one/SKILL.md ]"),
    }
    task = write(tmp_path / "task", files)
    assert (await play(task, tmp_path / "without", "nop")).reward == 0.0
    options = ramify.RunOptions(
        out=tmp_path / "with", rollout=RolloutConfig(skill_mode=SkillMode.WITH_SKILL)
    )
    report = await ramify.run(task, agent="nop", sandbox="bare", options=options)
    assert report.results[0].reward == 1.0
