"""What a task demands of an agent and of a sandbox, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from ramify.contracts.agent import Agent
from ramify.contracts.config import SkillMode
from ramify.contracts.errors import UnsupportedError, UsageError
from ramify.contracts.sandbox import Capabilities, SandboxSpec
from ramify.contracts.task import Task

_USERS = "see `ramify doctor` for what is missing, or use --sandbox docker"


def check_agent(task: Task, agent: Agent, mode: SkillMode) -> None:
    """Raise UnsupportedError when a task offers what the agent cannot take up."""
    package, can = task.package, agent.capabilities()
    if package is None:
        return
    if package.mcp_servers and not can.mcp:
        names = ", ".join(server.name for server in package.mcp_servers)
        raise UnsupportedError(
            f"{task.task_id} offers MCP servers ({names}), which the agent `{agent.name}` cannot "
            "use; choose another agent"
        )
    if package.skills_dir is not None and mode is not SkillMode.NO_SKILL and not can.skills:
        raise UnsupportedError(
            f"{task.task_id} offers skills, which the agent `{agent.name}` cannot use; choose "
            f"another agent, or the skill mode `{SkillMode.NO_SKILL}`"
        )
    if len(package.steps) > 1 and not can.multi_prompt:
        raise UnsupportedError(
            f"{task.task_id} has {len(package.steps)} steps, and the agent `{agent.name}` takes "
            "only one prompt; choose another agent"
        )


def check_verifiers(task: Task, provider: str, can: Capabilities) -> None:
    """Raise UnsupportedError when a separate verifier cannot be made on this provider."""
    package = task.package
    if package is None:
        return
    for settings in (package.verifier, *(step.verifier for step in package.steps)):
        if settings.sandbox is not None:
            _check_root(task, settings.sandbox, provider, can)
        network = settings.network
        if network is not None and can.isolation != "none" and network.mode not in can.network:
            raise UnsupportedError(
                f"the verifier of {task.task_id} asks for network `{network.mode}`, which "
                f"`{provider}` does not offer here"
            )


def check_runner(task: Task, provider: str, can: Capabilities) -> None:
    """Raise UnsupportedError when our own runner is to run its tests where it has no user."""
    package, isolates = task.package, can.isolation != "none"
    if package is None or (isolates and can.users):
        return
    remedy = _USERS if isolates else "use --sandbox local or docker"
    for settings in [step.verifier for step in package.steps] or [package.verifier]:
        if settings.grading is not None and settings.grading.runner is not None:
            raise UnsupportedError(
                f"{task.task_id}: ramify.tests.runner: `{settings.grading.runner}` runs the tests "
                f"as a user of their own, which `{provider}` cannot give{' here' * isolates}; "
                f"{remedy}, or leave it out with --exclude {task.task_id}"
            )


def check_users(task: Task, provider: str, can: Capabilities) -> None:
    """Raise UnsupportedError when a task names a user whom the sandbox does not have."""
    package = task.package
    if package is None or can.users:
        return
    asked = {"the agent": package.agent_user, "the sandbox": package.sandbox.user}
    for step in package.steps:
        asked[f"the verifier of step {step.name}"] = step.verifier.user
    asked["the verifier"] = package.verifier.user
    for who, user in asked.items():
        if user not in (None, "root", "0"):
            raise UnsupportedError(
                f"{task.task_id}: {who} is to run as user {user}, and `{provider}` has one user "
                f"only here; {_USERS}, or leave it out with --exclude {task.task_id}"
            )


def check_image(tasks: Sequence[Task], image: str) -> None:
    """Raise UsageError when `--image` would be without effect on each of the tasks."""
    packages = [task.package for task in tasks]
    if None in packages or packages[0] is None:
        return
    spec, first = packages[0].sandbox, tasks[0].task_id
    own = "its own Dockerfile" if spec.build is not None else f"the image {spec.image}"
    where = "a Compose project" if spec.compose is not None else own
    if spec.compose is None and spec.build is None and spec.image is None:
        where = "the host's root"
    others = f", and so do the other {len(tasks) - 1}" if len(tasks) > 1 else ""
    raise UsageError(
        f"--image {image} is for tasks that come without a directory; {first} says itself what it "
        f"runs on ({where}){others}: leave --image out"
    )


def _check_root(task: Task, spec: SandboxSpec, provider: str, can: Capabilities) -> None:
    lacking = {
        "is built from a Dockerfile": spec.build is not None and not can.builds,
        f"needs the image {spec.image}": spec.image is not None and not can.images,
        "is a Compose project": spec.compose is not None and not can.compose,
    }
    for what, lacks in lacking.items():
        if lacks:
            raise UnsupportedError(
                f"the verifier of {task.task_id} {what}, which `{provider}` cannot do; "
                "use --sandbox docker"
            )
