"""Where attacks run: one provider, a pristine image, and a piece of the host that is watched."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sysconfig
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ramify.contracts.context import Context
from ramify.contracts.sandbox import (
    BuildSpec,
    ExecResult,
    SandboxImage,
    SandboxProvider,
    SandboxSpec,
)
from ramify.contracts.task import IsolationLevel, ScriptProfile, Task, TaskPackage
from ramify.planes.environment.package import provision_package
from ramify.planes.reward.script import ScriptVerifier
from ramify.testing.fakecontext import fake_context

_PYTEST = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")

_INSTALL = """
import compileall, shutil, site
place = site.getsitepackages()[0]
shutil.copytree("/library", place, dirs_exist_ok=True)
raise SystemExit(not compileall.compile_dir(place, quiet=1))
"""


@dataclass(frozen=True)
class Field:
    """A provider and the image that every attack starts from; kept for all attacks of a module.

    `base` names the image that pipelines run on (None: the host's root). `honest` holds what honest
    solutions scored, by task and level: one run serves every attack on the same task.
    """

    provider: SandboxProvider
    spec: SandboxSpec
    image: SandboxImage
    base: str | None
    verifiers: dict[object, ScriptVerifier] = field(default_factory=dict[object, ScriptVerifier])
    honest: dict[object, float | None] = field(default_factory=dict[object, float | None])

    def verifier(
        self, level: IsolationLevel, profile: ScriptProfile | None = None
    ) -> ScriptVerifier:
        if (level, profile) not in self.verifiers:
            made = ScriptVerifier(level, provision_package, profile)
            self.verifiers[level, profile] = made
        return self.verifiers[level, profile]


@asynccontextmanager
async def open_field(
    provider: SandboxProvider, scratch: Path, image: str | None
) -> AsyncGenerator[Field]:
    """On an image with pytest in it: one that is built upon the given one, or the host's root."""
    library = scratch / "library"
    installed = Path(sysconfig.get_paths()["purelib"])
    for name in _PYTEST:
        shutil.copytree(installed / name, library / name, ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copyfile(installed / "py.py", library / "py.py")
    (scratch / "install.py").write_text(_INSTALL)
    (scratch / "Dockerfile").write_text(
        f"FROM {image}\nCOPY library /library\nCOPY install.py /\nRUN python3 /install.py\n"
    )
    try:
        if image is not None:
            spec = SandboxSpec(build=BuildSpec(str(scratch)), workdir="/app")
            yield Field(provider, spec, await provider.prepare(spec), image)
            return
        spec = SandboxSpec(host_root=True, workdir="/app")
        prepared = await _installed(provider, spec, scratch)
        try:
            yield Field(provider, spec, prepared, image)
        finally:
            await provider.discard(prepared)
    finally:
        await provider.aclose()


async def _installed(provider: SandboxProvider, spec: SandboxSpec, scratch: Path) -> SandboxImage:
    sandbox = await provider.create(spec, await provider.prepare(spec))
    try:
        await sandbox.upload(scratch / "library", "/library")
        done = await sandbox.exec(["python3", "-"], stdin=_INSTALL.encode(), cwd="/")
        assert done.ok, done
        return await sandbox.freeze()  # type: ignore[attr-defined]  (the provider can)
    finally:
        await sandbox.teardown()


@dataclass(frozen=True)
class Ground:
    """The place of one attack. `host` is watched; `marker` is known nowhere but in a file there."""

    field: Field
    place: Path
    marker: str

    @property
    def host(self) -> Path:
        return self.place / "host"

    @property
    def kept(self) -> Path:
        """All that Ramify keeps of the attack."""
        return self.place / "kept"

    @property
    def loot(self) -> Path:
        """A directory for what an undefended verifier brings to the host."""
        path = self.place / "loot"
        path.mkdir(exist_ok=True)
        return path

    def digest(self) -> str:
        """Everything about the watched directory: names, modes, owners, links, content."""
        hasher = hashlib.sha256()
        for folder, directories, files in os.walk(self.host):
            directories.sort()
            for name in sorted([*directories, *files]):
                path = Path(folder, name)
                facts = path.lstat()
                hasher.update(repr((str(path), facts.st_mode, facts.st_uid)).encode())
                hasher.update(repr((facts.st_nlink, facts.st_mtime_ns)).encode())
                if path.is_symlink():
                    hasher.update(os.readlink(path).encode())
                elif path.is_file():
                    hasher.update(path.read_bytes())
        return hasher.hexdigest()

    def leaks(self, *texts: object) -> list[str]:
        """Where the marker is seen: files that were kept, or in one of the texts."""
        found = [f"a text: {str(text)[:200]}" for text in texts if self.marker in str(text)]
        for path in self.kept.rglob("*"):
            regular = path.is_file() and not path.is_symlink()
            if regular and self.marker.encode() in path.read_bytes():
                found.append(str(path))
        return found

    @asynccontextmanager
    async def occupied(self, package: TaskPackage, name: str) -> AsyncGenerator[Context]:
        """A sandbox at the start of a task, in which an agent may work."""
        ours = self.field
        sandbox = await ours.provider.create(ours.spec, ours.image)
        try:
            ctx = fake_context(
                Task("set:attacked", input="Do it.", package=package),
                artifacts=self.kept / name,
                sandbox=sandbox,
                provider=ours.provider,
                image=ours.image,
            )
            await provision_package(sandbox, ctx)
            yield ctx
        finally:
            await sandbox.teardown()

    async def act(self, ctx: Context, script: str) -> ExecResult:
        """What the agent does, as root: a script that knows where the host keeps its secret."""
        assert ctx.sandbox is not None
        # Its own process may not carry the words of the script: what looks for itself finds all.
        done = await ctx.sandbox.exec(
            ["sh", "-s"],
            stdin=script.encode(),
            user="root",
            cwd=ctx.workdir,
            env={"HOST": str(self.host)},
            timeout_sec=30,
        )
        assert done.ok, (script, done)
        return done


def new_ground(field: Field, place: Path) -> Ground:
    """A ground with a fresh secret."""
    ground = Ground(field, place, "marker-" + secrets.token_hex(12))
    ground.host.mkdir(parents=True)
    ground.host.chmod(0o777)  # nothing but the sandbox keeps an attack from it
    (ground.host / "secret").write_text(ground.marker + "\n")
    (ground.host / "config.json").write_text('{"keep": true}\n')
    return ground
