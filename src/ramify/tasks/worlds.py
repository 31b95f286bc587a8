"""What a sandbox is made from, and how a task is verified in it, out of its tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import BuildSpec, ComposeSpec, NetworkPolicy, SandboxSpec
from ramify.contracts.task import IsolationLevel, TaskStep, VerifierSettings
from ramify.tasks.buildroot import build_spec
from ramify.tasks.dockerfile import workdir_of_dockerfile
from ramify.tasks.fields import Fields, healthcheck, user_name
from ramify.tasks.grading import test_grading
from ramify.tasks.schema import EnvironmentTable, RamifyTable, StepTable, TaskToml, VerifierTable
from ramify.tasks.texts import read_text

DEFAULT_WORKDIR = "/app"
"""Work directory of a task that runs without an image and names none."""

_COMPOSE_FILE = "docker-compose.yaml"
_OTHER_COMPOSE_FILES = ("docker-compose.yml", "compose.yaml", "compose.yml")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a format keeps the parts of a task, relative to its directory."""

    tests: str = "tests"
    solution: str = "solution"
    environment: str = "environment"


@dataclass(frozen=True, slots=True)
class Worlds:
    """Reads the sandboxes and verifiers of one task.

    Attributes:
        root: the task directory.
        table: what the task says.
        native: our own additions.
        fields: checks single fields.
        layout: where things are.
    """

    root: Path
    table: TaskToml
    native: RamifyTable
    fields: Fields
    layout: Layout

    def agent_sandbox(self, network: NetworkPolicy) -> SandboxSpec:
        """The sandbox that the agent works in."""
        table = self.table.environment
        folder = self.root / self.layout.environment
        spec = self._spec("environment", table, folder, network)
        if spec is not None and not self.native.image_free:
            return spec
        if spec is None and not self.native.image_free and self.native.world is None:
            raise self.fields.error(
                "environment",
                f"the task needs {self.layout.environment}/Dockerfile, a Compose file there, "
                "[environment] docker_image, or [ramify] image_free = true",
            )
        # The host's root has no work directory of its own to fall back on.
        made = spec or SandboxSpec(
            host_root=True,
            workdir=self.fields.absolute("environment.workdir", table.workdir),
            env=self.fields.env("environment.env", table.env),
            limits=self.fields.limits("environment", table),
            network=network,
        )
        if self.native.world is not None:
            return made  # The world may have one.
        return msgspec.structs.replace(made, workdir=made.workdir or DEFAULT_WORKDIR)

    def _spec(
        self, where: str, table: EnvironmentTable, folder: Path, network: NetworkPolicy
    ) -> SandboxSpec | None:
        """A sandbox on the image, Compose file or Dockerfile of `folder`; None without any."""
        dockerfile = folder / "Dockerfile"
        compose = compose_file(folder)
        if table.docker_image is not None and compose is not None and compose.name != _COMPOSE_FILE:
            compose = None
        env = self.fields.env(f"{where}.env", table.env)
        workdir = self.fields.absolute(f"{where}.workdir", table.workdir)
        build: BuildSpec | None = None
        services: ComposeSpec | None = None
        if compose is not None:
            services = ComposeSpec(str(compose), "main", {**_variables(table), **env})
        elif table.docker_image is None and dockerfile.is_file():
            build = build_spec(self.root, folder, table.build_timeout_sec)
        elif table.docker_image is None:
            return None
        if table.docker_image is None and dockerfile.is_file():
            workdir = workdir or workdir_of_dockerfile(read_text(dockerfile))
        return SandboxSpec(
            image=table.docker_image if services is None else None,
            build=build,
            compose=services,
            workdir=workdir,
            env=env,
            limits=self.fields.limits(where, table),
            network=network,
        )

    def verifier(self, agent: SandboxSpec, step: StepTable | None = None) -> VerifierSettings:
        """How the task, or one of its steps, is verified."""
        task = self.table.verifier
        own = step.verifier if step is not None else task
        low, high = self.native.reward_range
        if not -1e9 <= low < high <= 1e9:
            raise self.fields.error(
                "ramify.reward_range", "must be [minimum, maximum], finite, in order"
            )
        separate = self._separate(own if _mode(own) else task)
        network = self._verifier_network(own, separate)
        sandbox, bundled = (
            self._verifier_sandbox(agent, step, network) if separate else (None, False)
        )
        grading = test_grading(self.fields, self.native.tests, steps=step is not None)
        ours = grading is not None and grading.runner is not None
        tests, more = ("", ()) if bundled else self._tests(step, needs_script=not ours)
        if ours and (own.user if own.user is not None else task.user) is not None:
            raise self.fields.error(
                "verifier.user", "our own runner has users of its own; remove it"
            )
        collect = (*task.collect, *(own.collect if step is not None else ()))
        return VerifierSettings(
            tests=tests,
            more_tests=more,
            timeout_sec=own.timeout_sec or task.timeout_sec or 600.0,
            env=self.fields.env("verifier.env", {**task.env, **own.env}),
            user=user_name(own.user if own.user is not None else task.user),
            network=network,
            reward_range=self.native.reward_range,
            isolation=self._isolation(step, ours=ours),
            separate=separate,
            sandbox=sandbox,
            collect=self.fields.collect("verifier.collect", collect),
            grading=grading,
        )

    def _isolation(self, step: StepTable | None, *, ours: bool) -> IsolationLevel | None:
        """The level of the task. Our own runner wants a pristine Python, so a fresh sandbox."""
        if self.native.isolation is not None or not ours or step is not None:
            return self.native.isolation
        return IsolationLevel.OUTPUTS if self.native.outputs else IsolationLevel.WORKDIR

    def _separate(self, table: VerifierTable) -> bool:
        if table.environment_mode == "shared" and table.environment is not None:
            raise self.fields.error(
                "verifier.environment", 'has no meaning with environment_mode = "shared"'
            )
        return _mode(table) == "separate"

    def _verifier_network(self, own: VerifierTable, separate: bool) -> NetworkPolicy:
        task = self.table.verifier
        asked = self.fields.phase("verifier", own) or self.fields.phase("verifier", task)
        if asked is not None:
            return asked
        definition = own.environment or task.environment if separate else None
        if definition is not None:
            return self.fields.baseline("verifier.environment", definition)
        if self.table.ramify is not None:
            return NetworkPolicy()
        return self.fields.baseline("environment", self.table.environment)

    def _verifier_sandbox(
        self, agent: SandboxSpec, step: StepTable | None, network: NetworkPolicy
    ) -> tuple[SandboxSpec | None, bool]:
        """The sandbox of a separate verifier, and whether its image holds the tests."""
        task = self.table.verifier.environment
        own = step.verifier.environment if step is not None else None
        places = [(task, self.root / self.layout.tests)]
        if step is not None:
            places.insert(0, (own, self.root / "steps" / step.name / "tests"))
        definition = own or task
        for table, folder in places:
            image = table.docker_image if table is not None else None
            if image is None and not (folder / "Dockerfile").is_file() and not compose_file(folder):
                continue
            # The image is that of this place, everything else the definition's.
            used = definition or self.table.environment
            used = msgspec.structs.replace(used, docker_image=image)
            return self._spec("verifier.environment", used, folder, network), True
        if definition is None:
            return None, False
        return SandboxSpec(
            image=agent.image,
            build=agent.build,
            compose=agent.compose,
            host_root=agent.host_root,
            workdir=self.fields.absolute("verifier.environment.workdir", definition.workdir)
            or agent.workdir,
            env=self.fields.env("verifier.environment.env", definition.env),
            limits=self.fields.limits("verifier.environment", definition),
            network=network,
        ), False

    def _tests(self, step: StepTable | None, *, needs_script: bool) -> tuple[str, tuple[str, ...]]:
        """The directories of tests, the later laid over the earlier; one holds the script.

        No script, and none of them, where the task names a world, whose manifest may have another
        verifier; where it has not, whoever makes the verifier says so.
        """
        places = [self.layout.tests]
        if step is not None:
            places.append(f"steps/{step.name}/tests")
        found = [place for place in places if (self.root / place).is_dir()]
        if not found and self.native.world is not None:
            return "", ()
        if not needs_script:
            if not found:
                raise ConfigError(
                    "is missing; the tests in it decide the reward", file=str(self.root / places[0])
                )
        elif self.native.world is None and not any(
            (self.root / place / "test.sh").is_file() for place in found
        ):
            raise ConfigError(
                "is missing; it decides the reward", file=str(self.root / places[-1] / "test.sh")
            )
        return found[0], tuple(found[1:])

    def step(self, agent: SandboxSpec, step: StepTable, instruction: str) -> TaskStep:
        """One step, without its solution."""
        folder = self.root / "steps" / step.name / "workdir"
        bounds = step.min_reward
        if isinstance(bounds, int | float):
            bounds = {"reward": float(bounds)}
        return TaskStep(
            name=step.name,
            instruction=instruction,
            verifier=self.verifier(agent, step),
            agent_timeout_sec=step.agent.timeout_sec or self.table.agent.timeout_sec or 600.0,
            min_reward=bounds or {},
            files=f"steps/{step.name}/workdir" if folder.is_dir() else None,
            setup="setup.sh" if (folder / "setup.sh").is_file() else None,
            healthcheck=healthcheck(step.healthcheck),
            artifacts=self.fields.artifacts("steps.artifacts", step.artifacts),
        )


def compose_file(folder: Path) -> Path | None:
    """The Compose file that a directory is run by, if there is one.

    That is docker-compose.yaml. Under any other name it counts only where there is no Dockerfile:
    beside one it is part of the problem ("mend this file"), which the Dockerfile copies.
    """
    names = [_COMPOSE_FILE]
    if not (folder / "Dockerfile").is_file():
        names.extend(_OTHER_COMPOSE_FILES)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _variables(table: EnvironmentTable) -> dict[str, str]:
    """What Harbor's Compose files may name and only the task knows."""
    named = {
        "MAIN_IMAGE_NAME": table.docker_image or "",
        "PREBUILT_IMAGE_NAME": table.docker_image or "",
        "CPUS": "" if table.cpus is None else f"{table.cpus:g}",
        "MEMORY": "" if table.memory_mb is None else f"{table.memory_mb}M",
    }
    return {key: value for key, value in named.items() if value}


def _mode(table: VerifierTable) -> str | None:
    if table.environment_mode is not None:
        return table.environment_mode
    return "separate" if table.environment is not None else None
