"""The records of a manifest: what a world is made of, as its author declares it.

`manifest.py` reads and checks them. Every key of the TOML file is a field here, by the same name.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=100_000)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]

StateKind = Literal["sqlite", "postgres", "redis", "files", "command", "http", "process"]
OnBranch = Literal["live", "restart", "hook"]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every table; unknown keys are reported before conversion."""


class StateSpec(Table, frozen=True):
    """`[[environment.state]]`: a part of the world that is snapshot, compared and put back.

    Attributes:
        kind: which driver takes care of it.
        name: what it is called in reports; by default made from the kind and its place.
        paths: `sqlite`: database files, `files`: files and directories; absolute, with globs.
        exclude: `files`: patterns below `paths` that are left out.
        service: whose state it is: `http` asks that service, `process` is its memory; any other
            kind gives a service with `on_branch = "hook"` its state back.
        url: `postgres`: `postgresql:///database` (over the local socket, as the server's own user),
            or `postgresql://user:password@127.0.0.1:5432/database` of a superuser; `redis`:
            `redis://127.0.0.1:6379/0` (one database; without the number, all of them).
        snapshot, restore: `command`: shell lines that write to and read from the directory
            `$RAMIFY_STATE_DIR`; `http`: paths of the service: the answer to a POST of the first is
            the body of a POST to the second.
        digest: a shell line that prints the same text for equal state, in place of the driver's
            own digest (`http`: a path that is asked with GET).
        mutate: a shell line that changes the state (`http`: a path that is asked with POST), for
            `ramify env check`; by default the driver changes something of its own choice.
        user: as whom commands and files are touched; root by default.
        timeout_sec: for each single operation.
    """

    kind: StateKind
    name: Text | None = None
    paths: list[Text] = []
    exclude: list[Text] = []
    service: Text | None = None
    url: Text | None = None
    snapshot: Text | None = None
    restore: Text | None = None
    digest: Text | None = None
    mutate: Text | None = None
    user: Text | None = None
    timeout_sec: Seconds = 120.0


class ServiceSpec(Table, frozen=True):
    """`[[environment.services]]`: one process of the world that serves the agent.

    Attributes:
        name: unique within the world.
        command: the shell line that starts it; where there is none, the image's entrypoint does.
        port: the TCP port that it listens on.
        health: the path that answers 2xx over HTTP once it is well, or `tcp` where a connection
            is answer enough. `health_path` is another name of it.
        on_branch: how it comes through a branch: `live` (its memory is captured), `restart` (its
            memory may be lost; it is started again) or `hook` (the state that names it is written
            down and given back). There is no default: a service that declares nothing is only
            branched where its memory is captured.
        user: who it runs as; by default the image's user.
        env, cwd: added to its environment; where it is started (default: the work directory).
        depends_on: services that are started before it; otherwise the order is as listed.
        stop_timeout: seconds between asking it to stop and killing it.
    """

    name: Text
    command: Text | None = None
    port: Port | None = None
    health: Text | None = None
    health_path: Text | None = None
    on_branch: OnBranch | None = None
    user: Text | None = None
    env: dict[str, str] = {}
    cwd: Text | None = None
    depends_on: list[Text] = []
    stop_timeout: Seconds = 10.0


class TaskSelection(Table, frozen=True):
    """`[environment.task_selection]`: how the world learns which task it is for.

    `image`: the task brings an image (or Dockerfile) of its own with its data in it; of the
    services listed, those whose program it has are started. `env_var`: one image serves every
    task, and the variable `key` carries the task's id, the part after the colon. `inject_into`
    says who sees it: `entrypoint`: everything in the sandbox, the image's entrypoint and the
    services included; `exec`: the commands of agent and verifier, and not the world itself.
    """

    mechanism: Literal["image", "env_var"] = "env_var"
    key: Text | None = None
    inject_into: Literal["entrypoint", "exec"] = "entrypoint"


class Readiness(Table, frozen=True):
    """`[environment.readiness]`: what has to answer before the agent comes.

    Attributes:
        http: URLs on the sandbox's loopback that answer 2xx.
        tcp: ports that accept connections.
        command: a shell line that exits 0 inside.
        timeout_sec: within which all of them answer, at one time.
        nonce: the services echo it: each URL is asked with a fresh header `X-Ramify-Nonce` and
            the same text as `?ramify_nonce=`, and the answer must hold it.
    """

    http: list[Text] = []
    tcp: list[Port] = []
    command: Text | None = None
    timeout_sec: Seconds = 120.0
    nonce: bool = False


class ForwardEnv(Table, frozen=True):
    """`[environment.forward_env]`: variables of the engine's host that the world's own processes
    get. Agents do not have them in their environment; root in the same sandbox can find them."""

    keys: list[Text] = []


class EnvironmentSpec(Table, frozen=True):
    """`[environment]`.

    Attributes:
        name: of the world.
        image, base_image, build: what sandboxes are made from where a task brings nothing of its
            own; `build` is a directory beside the manifest with a Dockerfile. With none of them,
            a task runs where image-free tasks do.
        files: a directory beside the manifest that is copied into `workdir`.
        workdir: the work directory inside, where the task names none.
        owns_lifecycle: whether the image's entrypoint is started; it then starts the services
            without a command. By default so where an image is given and no service has a command.
        isolation: `per_task`: every episode begins anew; `persistent`: an episode begins with the
            declared state that the one before it left.
        topology: `in-sandbox`: every rollout has its own world in its own sandbox;
            `shared-fleet`: long-lived services serve many rollouts, each with accounts of its own.
            They run in one sandbox of the engine's, made from `image`, `base_image` or `build`
            (else from what the task runs in) with `files`; a task's sandbox reaches their ports at
            127.0.0.1, and of each state (postgres, redis, sqlite; one of a kind) it has a place
            made from what the state names as a template.
        fleet_env: in a shared fleet, the file in a task's sandbox from which a shell reads how
            its places are opened (`DATABASE_URL`, `REDIS_URL`, ...): `. "$FLEET_ENV"`.
        ports: further ports of the world, exposed by `ramify env up`.
        keep_alive: whether the entrypoint may end by itself without that being a failure.
    """

    name: Text
    image: Text | None = None
    base_image: Text | None = None
    build: Text | None = None
    files: Text | None = None
    workdir: Text | None = None
    owns_lifecycle: bool | None = None
    isolation: Literal["per_task", "persistent"] = "per_task"
    topology: Literal["in-sandbox", "shared-fleet"] = "in-sandbox"
    fleet_env: Text = "/run/fleet.env"
    ports: list[Port] = []
    keep_alive: bool = True
    forward_env: ForwardEnv = ForwardEnv()
    services: list[ServiceSpec] = []
    task_selection: TaskSelection = TaskSelection()
    readiness: Readiness = Readiness()
    state: StateSpec | list[StateSpec] = []


class VerifierSpec(Table, frozen=True):
    """`[verifier]`.

    `hidden_from_agent` are patterns of files that never exist in an agent's sandbox: a pattern
    without a slash matches a name anywhere, another one a path from any directory on, and what is
    below a directory that matches is hidden with it. The verifier finds them below /tests.

    Attributes:
        kind: `script` runs the task's tests; `rubric` calls Python functions of ours; `agent` lets
            an agent grade in a fresh sandbox; `pipeline` runs the steps of tests/agent.yaml.
        rubric: `rubric`: `file.py:name` beside the manifest, or `package.module:name`: a Rubric,
            a reward function, or a function that makes one.
        agent: `agent`: who grades.
        instruction: `agent`: what it is told, as a text, or as the name of a `.md` or `.txt` file
            beside the manifest; by default it is told to compare what was left with the fixtures.
        verdict: `agent`: whether its verdict is its last answer, which nothing in the sandbox can
            touch, or a file, for agents whose answers are not seen.
    """

    kind: Literal["script", "rubric", "agent", "pipeline"] = "script"
    hidden_from_agent: list[Text] = []
    rubric: Text | None = None
    agent: Text = "chat"
    instruction: Text | None = None
    verdict: Literal["answer", "file"] = "answer"


class ManifestTable(Table, frozen=True):
    """A whole manifest, as its file has it."""

    environment: EnvironmentSpec
    verifier: VerifierSpec = VerifierSpec()
