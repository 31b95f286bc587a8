"""Where it runs: an isolated file system and process space.

A ladder of guarantees: `Sandbox` runs things; contracts/frozen.py adds a frozen file system, and
live checkpoint and restore. A `SandboxProvider` creates a Sandbox from a
spec, or from a `SandboxImage`, so that N children of one state run side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from ramify.contracts.process import Process, PtySize
from ramify.contracts.streams import ConnectionHandler, Listener

MIB = 1024 * 1024


class NetworkMode(StrEnum):
    """What the inside may reach. Loopback inside the sandbox always works."""

    NONE = "none"
    """Nothing outside the sandbox."""
    ALLOWLIST = "allowlist"
    """Only `allowed_hosts`, through the HTTP(S) proxy of the engine."""
    OPEN = "open"
    """Public hosts. Loopback and private addresses of the host stay out of reach."""


class NetworkPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Network policy of one sandbox.

    `allowed_hosts` entries are `host`, `*.domain` or `host:port`.
    """

    mode: NetworkMode = NetworkMode.NONE
    allowed_hosts: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resource limits of one sandbox; None means the provider's default (pids: 1024).

    Units: MiB, CPU cores, processes, MiB of writable disk.
    """

    memory_mb: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_mb: int | None = None


class BuildSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image to build: a Dockerfile and its context directory on the host.

    `dockerfile` is relative to the context. Given `sources`, the build sees nothing of the context
    but these paths and the Dockerfile.
    """

    context: str
    dockerfile: str = "Dockerfile"
    timeout_sec: float = 600.0
    sources: tuple[str, ...] = ()


class ComposeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A project of several services: a Compose file, and the service that the agent works in.

    `file` is an absolute path on the host; build contexts are relative to its directory. `main`
    is the service (Harbor: `main`, Terminal-Bench: `client`). `env` comes first in what `${VAR}`
    in the file stands for, then the variables that Harbor and Terminal-Bench set, then `.env`
    beside the file; the host's own environment does not enter.
    """

    file: str
    main: str = "main"
    env: dict[str, str] = {}


class Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A directory of the host, seen inside at `target`. Only the caller's own code asks for one.

    `mode`: `ro`, where writing fails with EROFS; `rw`; or `cow`, copy-on-write: the inside writes
    freely, `source` stays as it is, and what was written lies in `scratch/upper` as overlayfs keeps
    it (a removed name is a character device 0:0). `scratch` is an empty directory of the host.
    """

    source: str
    target: str
    mode: Literal["ro", "rw", "cow"] = "ro"
    scratch: str | None = None


class SandboxSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sandbox is made from and how far it is let.

    Exactly one of `image`, `build`, `compose` and `host_root` says what the root file system is.
    `user` and `workdir` are defaults for `exec` and `spawn` (None: the image's own, else root
    and `/`); a user may be `uid:gid`. `lockdown` asks for the hardened profile of verifier
    sandboxes. `live` asks for one whose processes can be captured (`Snapshottable`); refused where
    the provider cannot. `labels` are put on everything that the provider makes for it (container
    labels, cgroup names). `mounts` are laid over the root in order; with `read_only` nothing but
    mounts, /dev/shm and what the provider itself needs can be written to.
    """

    image: str | None = None
    build: BuildSpec | None = None
    compose: ComposeSpec | None = None
    host_root: bool = False
    user: str | None = None
    workdir: str | None = None
    env: dict[str, str] = {}
    limits: Limits = Limits()
    network: NetworkPolicy = NetworkPolicy()
    lockdown: bool = False
    live: bool = False
    labels: dict[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    read_only: bool = False


class Healthcheck(msgspec.Struct, frozen=True):
    """How an image says that what runs in it is well.

    `test` is Docker's: `("CMD", program, ...)`, `("CMD-SHELL", line)` or `("NONE",)`. Times are in
    seconds (0: Docker's default), `retries` counts (0: Docker's default).
    """

    test: tuple[str, ...]
    interval_sec: float = 0.0
    timeout_sec: float = 0.0
    start_period_sec: float = 0.0
    retries: int = 0


class SandboxImage(msgspec.Struct, frozen=True):
    """A root file system as a value: pristine (built, pulled, host) or frozen from a sandbox.

    `digest` identifies the state: images of one provider with equal digests have the same files,
    and one that was frozen where nothing had changed may have its parent's. A pristine image's
    comes from its content, so the same content has it everywhere. A frozen one's is there at once,
    whatever the size of the state, and may differ between images with the same files: whoever
    compares states compares their content.

    `parent` is the image it was frozen from (None: pristine), `size_bytes` what it adds to its
    parent (-1: not measured). Each frozen image is discarded for itself, also those that share
    their files. `entrypoint`, `cmd` and
    `healthcheck` are what the image declares; a sandbox runs none of them by itself. `live` says
    that it holds processes too, which go on in each sandbox made from it; a copy of the record
    with `live` unset stands for the files alone.
    """

    id: str
    provider: str
    digest: str
    parent: str | None = None
    size_bytes: int = -1
    user: str | None = None
    workdir: str | None = None
    env: dict[str, str] = {}
    pristine: bool = True
    live: bool = False
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None


class Capabilities(msgspec.Struct, frozen=True):
    """What a provider can do on this machine; a task that demands more is refused.

    `isolation`: `none` (a bare process), `namespaces` or `container`. `snapshot`: `none`,
    `freeze` (file system) or `live` (processes too). `limits` names the fields of `Limits` that are
    enforced, `mounts` the modes of `Mount` that there are. `users`: commands run, and files are
    owned, as any user; else as one alone, who is called root.
    """

    isolation: Literal["none", "namespaces", "container"]
    lockdown: bool
    snapshot: Literal["none", "freeze", "live"]
    network: frozenset[NetworkMode]
    limits: frozenset[str]
    host_root: bool
    images: bool
    builds: bool
    compose: bool = False
    mounts: frozenset[str] = frozenset()
    users: bool = True


class ProbeReport(msgspec.Struct, frozen=True):
    """Whether a provider works here. `mode` names the variant chosen; `remedy` is for a person."""

    ok: bool
    mode: str
    detail: str
    remedy: str = ""


class ExecResult(msgspec.Struct, frozen=True):
    """Outcome of a finished command.

    `exit_code` is 124 when `timed_out`, 128+n when killed by signal n. Output beyond the limit
    keeps its head and its tail; `*_dropped` counts the bytes left out between them.
    """

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""
    signal: int | None = None
    timed_out: bool = False
    oom_killed: bool = False
    duration_sec: float = 0.0
    stdout_dropped: int = 0
    stderr_dropped: int = 0

    @property
    def ok(self) -> bool:
        """True when the command exited 0 in time."""
        return self.exit_code == 0


class TransferLimits(msgspec.Struct, frozen=True):
    """Bounds on a tree that crosses from a sandbox to the host.

    `links`: `drop` leaves every symbolic link out; `inside` keeps relative links that stay
    within the tree. Devices, FIFOs, sockets and anything else are always left out.
    """

    max_bytes: int = 1024 * MIB
    max_file_bytes: int = 512 * MIB
    max_entries: int = 100_000
    max_depth: int = 64
    links: Literal["drop", "inside"] = "drop"


class TransferReport(msgspec.Struct, frozen=True):
    """What crossed, and up to 100 of the entries that did not (`path: why`)."""

    files: int
    bytes: int
    dropped: tuple[str, ...] = ()
    dropped_count: int = 0


class Endpoint(msgspec.Struct, frozen=True):
    """An address on the engine's host that reaches a port inside the sandbox."""

    host: str
    port: int


@runtime_checkable
class Sandbox(Protocol):
    """An isolated file system and process space, alive until `teardown`.

    Guarantees: the inside cannot read or write the host beyond what its spec says; when the
    engine dies, however it dies, the sandbox is gone within two seconds; `teardown` leaves no
    process, mount, network or cgroup behind. Every method raises SandboxLostError once the
    sandbox is gone.
    """

    @property
    def id(self) -> str:
        """Unique id, also the label on everything that belongs to it."""
        ...

    @property
    def spec(self) -> SandboxSpec:
        """What it was made from."""
        ...

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_sec: float | None = None,
        output_limit: int = 16 * MIB,
        kill_leftovers: bool = False,
    ) -> ExecResult:
        """Run a command to its end; a string is given to `/bin/sh -c`.

        Returns when the command's own process has ended, even where a background process of its
        still holds the pipes. On timeout everything the command started is killed, in whatever
        session it is, and `timed_out` is set; a cancelled call kills it likewise. Processes left
        in the background go on unless `kill_leftovers`. Memory used here is bounded by
        `output_limit` per stream. A command that cannot be started gives exit code 127 (not
        found) or 126 (not executable), with the reason on stderr; an unknown user or missing cwd
        gives 126.

        Raises: SandboxLostError.
        """
        ...

    async def spawn(
        self,
        command: str | Sequence[str],
        *,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        pty: PtySize | None = None,
    ) -> Process:
        """Start a command with streams. Raises SandboxError if it cannot be started."""
        ...

    async def upload(
        self,
        local: Path,
        remote: str,
        *,
        owner: str | None = None,
        mode: int | None = None,
        clear: bool = False,
    ) -> None:
        """Copy a host file, or the content of a host directory, to `remote` (absolute).

        Missing parents are made. `clear` first removes whatever stands at `remote` (a link itself,
        never its target), without running any program of the inside. Links inside the sandbox are
        never followed out of it; the copy replaces files, merges directories and keeps modes (or
        sets `mode` on files); symbolic links in a local tree are copied as links. `owner` is a
        user name inside (default root).

        Raises: SandboxError (the inside refuses), SandboxLostError.
        """
        ...

    async def download(
        self, remote: str, local: Path, *, limits: TransferLimits | None = None
    ) -> TransferReport:
        """Copy a file, or the content of a directory, to the host path `local`.

        The inside is hostile: no link is followed, only regular files and directories (and links
        within the tree where `limits.links` says so) are created, set-id bits are cleared, hard
        links become copies, nothing outside `local` is touched, special files do not block.

        Raises: FileNotFoundError (no such `remote`, or it is not a file or directory),
        TransferLimitError, SandboxLostError.
        """
        ...

    async def expose_port(self, port: int) -> Endpoint:
        """A host address whose connections reach 127.0.0.1:`port` inside, until teardown."""
        ...

    async def serve_in(self, port: int, handler: ConnectionHandler) -> Listener:
        """Listen on 127.0.0.1:`port` inside (0: any); each connection is served by `handler` here.

        Raises: SandboxError if the port is taken.
        """
        ...

    def capabilities(self) -> Capabilities:
        """What this sandbox can do."""
        ...

    async def teardown(self) -> None:
        """End it and remove everything that belongs to it. Idempotent, bounded in time."""
        ...


class SandboxProvider(Protocol):
    """Makes sandboxes. One per engine; used by many tasks at once."""

    @property
    def name(self) -> str:
        """The name it is chosen by (`local`, `docker`, ...)."""
        ...

    async def probe(self) -> ProbeReport:
        """Whether it works on this machine, and if not, what to do about it. Makes nothing."""
        ...

    def capabilities(self) -> Capabilities:
        """What its sandboxes can do here. Call after `probe` or `prepare`."""
        ...

    async def prepare(self, spec: SandboxSpec) -> SandboxImage:
        """The pristine image of a spec: built, pulled or found once, then served from cache.

        Raises: UnsupportedError, ConfigError (no such image, bad Dockerfile), SandboxStartError.
        """
        ...

    async def create(self, spec: SandboxSpec, image: SandboxImage | None = None) -> Sandbox:
        """A new sandbox on `image` (default: the pristine one). Cancellation leaves nothing behind.

        Raises: UnsupportedError (a demand in the spec cannot be met), SandboxStartError.
        """
        ...

    async def discard(self, image: SandboxImage) -> None:
        """Free a frozen image that nothing runs on any more. Pristine images stay. Idempotent."""
        ...

    async def sweep(self) -> int:
        """Remove what engines that died left behind; returns how many things were removed."""
        ...

    async def aclose(self) -> None:
        """Tear down every sandbox still alive and release the provider. Idempotent."""
        ...
