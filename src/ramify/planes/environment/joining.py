"""A task set in the world of a manifest: what of its package the manifest decides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import BuildSpec, SandboxSpec
from ramify.contracts.task import Task, TaskPackage, VerifierSettings
from ramify.planes.environment.grading import grading_digest
from ramify.planes.environment.hidden import split_directory
from ramify.planes.environment.manifest import Manifest, load_manifest

_DEFAULT_WORKDIR = "/app"
_DEFAULT_READINESS_SEC, _SPARE_SEC = 120.0, 60.0


def in_world(task: Task, given: Path | None, home: Path) -> Task:
    """The task as it runs in the world of its own manifest, else of the one given.

    Raises: ConfigError (bad manifest, or services of no manifest), as `set_in_world`.
    """
    package = task.package
    if package is None:
        return task
    place = package.world or given
    if place is not None:
        return set_in_world(task, load_manifest(Path(place)), home)
    if package.services:
        raise ConfigError(
            f"the task uses the services {', '.join(package.services)}, and nothing says how they "
            "are started; give their manifest with --world FILE, or as `world` in the table "
            "[ramify] (with owns_lifecycle = true where the image's entrypoint starts them)",
            file=str(Path(package.path) / "task.toml"),
            field="environment.services",
        )
    return task


def readiness_timeout(task: Task) -> float:
    """Seconds that the world of a task has until it is healthy, and some to spare."""
    package = task.package
    if package is None or package.world is None:
        return _DEFAULT_READINESS_SEC
    manifest = load_manifest(Path(package.world))
    return manifest.environment.readiness.timeout_sec + _SPARE_SEC


def world_digest(task: Task, of_directory: Callable[[Path], str]) -> str:
    """Identifies the manifest of a task's world and the directories it names; empty without."""
    package = task.package
    if package is None or package.world is None:
        return ""
    manifest = load_manifest(Path(package.world))
    total = hashlib.blake2b(manifest.path.read_bytes(), digest_size=16)
    for place in (manifest.files, manifest.build):
        if place is not None:
            total.update(of_directory(place).encode())
    total.update(grading_digest(manifest).encode())
    return total.hexdigest()


def set_in_world(task: Task, manifest: Manifest, home: Path) -> Task:
    """The task as it runs in that world. Blocks (it copies files without hidden ones).

    Where the task has no image, Dockerfile or Compose file of its own, the manifest's root is used;
    where that has none either, it may run on the host's root. The variable that carries the task's
    id is set in the sandbox. Files that the manifest hides are left out of the task's, and laid
    over its tests.

    Args:
        task: with a package.
        manifest: of the world.
        home: where copies are kept.

    Raises: UnknownNameError (the task names a service that the manifest does not have), OSError.
    """
    package = task.package
    assert package is not None
    manifest.services(package.services)
    spec = package.sandbox
    host_root_ok = package.host_root_ok
    if spec.host_root:
        spec = _root(spec, manifest)
        host_root_ok = host_root_ok or spec.host_root
    workdir = spec.workdir or manifest.environment.workdir
    if workdir is None and (spec.host_root or host_root_ok):
        workdir = _DEFAULT_WORKDIR
    env = spec.env
    if (key := manifest.selection_key) is not None:
        env = {**env, key: task.id.item_id}
    if manifest.environment.topology == "shared-fleet":
        env = {**env, "FLEET_ENV": manifest.environment.fleet_env}
    joined = msgspec.structs.replace(
        package,
        world=str(manifest.path),
        sandbox=msgspec.structs.replace(spec, workdir=workdir, env=env),
        host_root_ok=host_root_ok,
    )
    return msgspec.structs.replace(task, package=_without_hidden(joined, manifest, home))


def _root(spec: SandboxSpec, manifest: Manifest) -> SandboxSpec:
    environment = manifest.environment
    image = environment.image or environment.base_image
    build = BuildSpec(context=str(manifest.build)) if manifest.build is not None else None
    return msgspec.structs.replace(
        spec, image=image, build=build, host_root=image is None and build is None
    )


def _without_hidden(package: TaskPackage, manifest: Manifest, home: Path) -> TaskPackage:
    hidden = manifest.verifier.hidden_from_agent
    if not hidden:
        return package
    found: list[Path] = []
    if manifest.files is not None:
        found += _some(split_directory(manifest.files, hidden, home).hidden)
    if package.files is not None:
        parted = split_directory(Path(package.path) / package.files, hidden, home)
        found += _some(parted.hidden)
        package = msgspec.structs.replace(package, files=str(parted.visible))
    more = tuple(str(place) for place in found)
    steps = tuple(
        msgspec.structs.replace(step, verifier=_with_tests(step.verifier, more))
        for step in package.steps
    )
    verifier = _with_tests(package.verifier, more)
    return msgspec.structs.replace(package, verifier=verifier, steps=steps)


def _some(place: Path | None) -> list[Path]:
    return [] if place is None else [place]


def _with_tests(settings: VerifierSettings, more: tuple[str, ...]) -> VerifierSettings:
    """With further directories below /tests; the task's own files win."""
    bundled = not settings.tests and settings.separate  # in the verifier's own image
    if bundled or not more:
        return settings
    first, *rest = filter(None, (*more, settings.tests, *settings.more_tests))
    return msgspec.structs.replace(settings, tests=first, more_tests=tuple(rest))
