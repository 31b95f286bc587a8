"""What a task's sandbox is made from on a given provider, and which of its limits hold there."""

from __future__ import annotations

import msgspec

from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import Capabilities, NetworkMode, NetworkPolicy, SandboxSpec
from ramify.contracts.task import Task


def sandbox_spec(
    task: Task, provider: str, can: Capabilities, default_image: str | None = None
) -> SandboxSpec:
    """What a task's sandbox is made from on a provider with these capabilities.

    A task that may run on the host's root does so where the provider offers it; else its image
    or Dockerfile is used. A task without a directory runs on `default_image`, or on the host's
    root where there is none.

    Raises:
        UnsupportedError: the provider offers neither, or lacks what the task demands.
    """
    package = task.package
    if package is None:
        if default_image is None and not can.host_root:
            raise UnsupportedError(
                f"{task.task_id} names no image and `{provider}` needs one; give one with --image"
            )
        if default_image is not None and not can.images:
            raise UnsupportedError(f"`{provider}` runs no image; leave --image {default_image} out")
        return SandboxSpec(image=default_image, host_root=default_image is None, workdir="/app")
    spec = package.sandbox
    if can.host_root and package.host_root_ok:
        return msgspec.structs.replace(spec, host_root=True, image=None, build=None, compose=None)
    if spec.compose is not None and not can.compose:
        raise UnsupportedError(
            f"{task.task_id} is a Compose project, which `{provider}` cannot run; "
            "use --sandbox docker"
        )
    if spec.build is not None and not can.builds:
        raise UnsupportedError(
            f"{task.task_id} is built from a Dockerfile, which `{provider}` cannot do; "
            "use --sandbox docker"
        )
    if spec.image is not None and not can.images:
        raise UnsupportedError(
            f"{task.task_id} needs the image {spec.image}, which `{provider}` cannot run; "
            "use --sandbox docker"
        )
    if can.isolation != "none" and spec.network.mode not in can.network:
        raise UnsupportedError(
            f"{task.task_id} asks for network `{spec.network.mode}`, which `{provider}` does not "
            "offer here"
        )
    return spec


def enforced(spec: SandboxSpec, can: Capabilities) -> tuple[SandboxSpec, list[str]]:
    """The spec without limits that cannot be enforced here, and the names of those.

    What a task says of memory, CPU and disk is mostly what its author's platform asks for, so a
    task is not refused for it; the caller tells a person which limits do not hold. The same goes
    for the network where there is no isolation at all: whoever asks for that was told.
    """
    asked = {name: getattr(spec.limits, name) for name in spec.limits.__struct_fields__}
    lacking = [
        name for name, value in asked.items() if value is not None and name not in can.limits
    ]
    kept = msgspec.structs.replace(spec.limits, **dict.fromkeys(lacking))
    network = spec.network
    if can.isolation == "none" and network.mode not in can.network:
        network = NetworkPolicy(NetworkMode.OPEN)
        lacking.append("network")
    return msgspec.structs.replace(spec, limits=kept, network=network), lacking
