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
        url: `postgres`: `postgresql://user:password@127.0.0.1:5432/database`; `redis`:
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
