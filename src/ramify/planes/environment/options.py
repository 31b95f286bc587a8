"""How the world of a manifest is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from ramify.contracts.drivers import DriverWorld, StateDriver
from ramify.contracts.sandbox import Sandbox
from ramify.planes.environment.records import StateSpec

DriverMaker = Callable[[StateSpec, Sandbox, DriverWorld], StateDriver]


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """How a manifest is run.

    Attributes:
        make_driver: makes the driver of a declared state.
        home: where copies without hidden files are kept.
        keep: where a persistent world's state is kept between episodes.
        wanted: the services that the task uses; empty: all.
        revertible: whether `reset` will be asked for, which costs a snapshot at the start.
        declared_only: `snapshot` and `restore` are about declared state; what a service has in
            memory beside it is left as it is, instead of being refused.
        wait_sec: how long an episode of a persistent world waits for the one before it.
    """

    make_driver: DriverMaker
    home: Path
    keep: Path
    wanted: Sequence[str] = ()
    revertible: bool = False
    declared_only: bool = False
    wait_sec: float = 3600.0


class WorldWays(TypedDict, total=False):
    """What may be said of a world besides where it is: fields of `WorldOptions`."""

    wanted: Sequence[str]
    revertible: bool
    declared_only: bool
    wait_sec: float
