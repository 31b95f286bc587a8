"""The sandbox of a run: what it is made of, what steps see of this machine, whom they run as."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ramify.apps.pipeline.git import GitDirs
from ramify.apps.pipeline.layout import RunDirectory, redirects
from ramify.apps.pipeline.records import NetworkWish, PipelineSpec, StepSpec
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.frozen import Reconnects
from ramify.contracts.sandbox import (
    Capabilities,
    Mount,
    NetworkMode,
    NetworkPolicy,
    Sandbox,
    SandboxProvider,
    SandboxSpec,
)
from ramify.envs.specs import enforced

DEFAULT_IMAGE = "debian:bookworm-slim"
HOST = "host"
REPO = "repo"
"""Name of what steps write over the repository, in the run's directory."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOSTS = "RAMIFY_PACKAGE_HOSTS"
_INDEXES = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX",
    "npm_config_registry", "NPM_CONFIG_REGISTRY", "YARN_REGISTRY", "CARGO_REGISTRY_INDEX",
    "GOPROXY",
)  # fmt: skip


def network_wish(step: StepSpec) -> NetworkWish:
    """What a step may reach: what it says, else everything for `install` and nothing for others."""
    return step.network or ("full" if step.name == "install" else "none")


def network_policy(wish: NetworkWish, env: Mapping[str, str]) -> NetworkPolicy:
    """The policy that a wish stands for.

    `packages` lets steps reach the hosts that `RAMIFY_PACKAGE_HOSTS` lists, and those of the
    package indexes that variables of theirs name.

    Raises: ConfigError (`packages`, and no host is known).
    """
    if wish == "full":
        return NetworkPolicy(NetworkMode.OPEN)
    if wish == "none":
        return NetworkPolicy()
    hosts = [host.strip() for host in env.get(_HOSTS, "").split(",")]
    for name in _INDEXES:
        urls = env.get(name, "").replace(",", " ").split()
        hosts += [urlsplit(url).hostname or "" for url in urls]
    allowed = tuple(sorted(set(filter(None, hosts))))
    if not allowed:
        raise ConfigError(
            f"no package host is known; list them in {_HOSTS}, or give steps one of "
            f"{', '.join(_INDEXES[:3])}, ... with `pass_env` or `env`",
            field="network: packages",
        )
    return NetworkPolicy(NetworkMode.ALLOWLIST, allowed)


def step_environment(
    spec: PipelineSpec, repo: Path, host: Mapping[str, str], *, host_root: bool
) -> dict[str, str]:
    """The variables of all steps: nothing of the host's but what the pipeline names.

    Raises: ConfigError (a secret that the host does not have).
    """
    env = redirects(str(repo))
    if host_root:
        env["PATH"] = host.get("PATH") or _PATH
    env |= {name: host[name] for name in spec.pass_env if name in host}
    missing = [name for name in spec.secrets if not host.get(name)]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set", field="secrets"
        )
    env |= {name: host[name] for name in spec.secrets}
    return {**env, **spec.env}


@dataclass(frozen=True, slots=True)
class Ground:
    """What a sandbox stands on.

    Attributes:
        repo: where steps see the repository.
        source: what they see there.
        run: the directory of the run.
        git: its git directories, None where they are not to be seen.
        root: the root file system, as a spec with nothing else in it.
        fixtures: further directories that they see read-only, by where they see them.
    """

    repo: Path
    source: Path
    run: RunDirectory
    git: GitDirs | None
    root: SandboxSpec
    fixtures: Mapping[str, Path]


def root_of(spec: PipelineSpec, given: SandboxSpec | None, can: Capabilities) -> SandboxSpec:
    """The root file system of the steps, as a spec with nothing else in it.

    `given` is a spec that has it where the pipeline names no image.

    Raises: UnsupportedError (a Compose project).
    """
    if spec.image is not None:
        return SandboxSpec(image=spec.image)
    if given is None:
        return SandboxSpec(host_root=True) if can.host_root else SandboxSpec(image=DEFAULT_IMAGE)
    if given.compose is not None:
        raise UnsupportedError(
            "a pipeline runs in one container, not in a Compose project; name an `image:`"
        )
    return SandboxSpec(image=given.image, build=given.build, host_root=given.host_root)


def sandbox_spec(
    spec: PipelineSpec, ground: Ground, provider: SandboxProvider, cache: Path | None
) -> SandboxSpec:
    """What the sandbox is made from. It begins without network; makes the mounts' directories.

    `cache` is what steps find in their cache.

    Raises: UnsupportedError (the provider cannot limit what is to be limited), ConfigError.
    """
    can = provider.capabilities()
    made = msgspec.structs.replace(
        ground.root,
        user=_user(ground.source, can),
        workdir=str(ground.repo),
        limits=spec.limits,
        lockdown=can.lockdown,
        mounts=(*ground.run.mounts(cache), *_repository(spec, ground)),
        read_only=True,
    )
    kept, lacking = enforced(made, can)
    if lacking:
        raise UnsupportedError(
            f"the {provider.name} sandbox cannot limit {', '.join(lacking)} here; "
            "leave that out of `limits`, or use --sandbox docker"
        )
    return kept


def _repository(spec: PipelineSpec, ground: Ground) -> list[Mount]:
    repo, source, run, dirs = ground.repo, ground.source, ground.run, ground.git
    found = [Mount(str(p.resolve()), target, "ro") for target, p in ground.fixtures.items()]
    if dirs is not None and not dirs.common.is_relative_to(repo):
        common = str(dirs.common.resolve())
        found.append(Mount(common, common, "ro"))
    if spec.repo_write == "deny":
        found.append(Mount(str(source), str(repo), "ro"))
        for number, place in enumerate(spec.writable):
            below = source / place
            if not below.is_dir() or below.resolve() != below:
                raise ConfigError(
                    f"{place!r} is no directory of the repository; make it, or use "
                    "`repo_write: guard`",
                    field="writable",
                )
            scratch = run.scratch(f"writable-{number}")
            found.append(Mount(str(below), str(repo / place), "cow", scratch))
        return found
    return [*found, Mount(str(source), str(repo), "cow", run.scratch(REPO))]


def owner_of(repo: Path) -> tuple[int, int] | None:
    """To whom the directories of a run are given, so that steps can write to them."""
    facts = repo.stat()
    return (facts.st_uid, facts.st_gid) if os.geteuid() == 0 else None


def _user(repo: Path, can: Capabilities) -> str:
    """Steps run as the owner of the repository: git and the files they make agree with it."""
    if os.geteuid() != 0 and can.isolation == "namespaces":
        return "0:0"  # root inside is whoever runs this
    facts = repo.stat()
    return f"{facts.st_uid}:{facts.st_gid}"


def check_mounts(spec: PipelineSpec, provider: SandboxProvider) -> None:
    """Raises: UnsupportedError (the provider cannot show the repository as the pipeline asks)."""
    needed = {"rw", "ro"} if spec.repo_write == "deny" else {"rw", "cow"}
    if missing := sorted(needed - provider.capabilities().mounts):
        raise UnsupportedError(
            f"the {provider.name} sandbox has no {' or '.join(missing)} mounts here; "
            "use --sandbox local or --sandbox docker"
        )


def check_networks(
    steps: tuple[StepSpec, ...], env: Mapping[str, str], can: Capabilities, provider: str
) -> dict[NetworkWish, NetworkPolicy]:
    """The policies of all steps, before any of them runs.

    Raises: UnsupportedError (the provider cannot enforce one), ConfigError.
    """
    policies: dict[NetworkWish, NetworkPolicy] = {}
    for step in steps:
        wish = network_wish(step)
        policies[wish] = network_policy(wish, env)
    lacking = sorted({p.mode for p in policies.values()} - can.network)
    if lacking:
        raise UnsupportedError(
            f"the {provider} sandbox has no network `{lacking[0]}` here; change `network:`"
        )
    return policies


async def connect(sandbox: Sandbox, policy: NetworkPolicy) -> None:
    """Let a sandbox reach what `policy` allows from now on.

    Raises: UnsupportedError (its network cannot be changed), SandboxError.
    """
    if not isinstance(sandbox, Reconnects):
        raise UnsupportedError(
            "the network of this sandbox cannot be opened for one step; use --sandbox local or "
            "--sandbox docker"
        )
    await sandbox.reconnect(policy)


def platform_name(spec: SandboxSpec) -> str:
    """The image as the manifest names it."""
    return HOST if spec.host_root else spec.image or ""


def spec_bytes(spec: PipelineSpec) -> bytes:
    """A pipeline that did not come from a file, as bytes to be hashed."""
    return msgspec.json.encode(spec, order="deterministic")
