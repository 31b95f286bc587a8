"""From the path of a manifest to the world that it declares, of whichever topology."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from ramify.planes.environment.fleet.host import Fleets
from ramify.planes.environment.fleet.world import FleetEnvironment
from ramify.planes.environment.manifest import load_manifest
from ramify.planes.environment.options import WorldOptions, WorldWays
from ramify.planes.environment.state.make import make_driver
from ramify.planes.environment.world import ManifestEnvironment


def open_world(
    path: Path, *, home: Path, keep: Path, fleets: Fleets, **how: Unpack[WorldWays]
) -> ManifestEnvironment | FleetEnvironment:
    """The world that a manifest declares: in the task's sandbox, or a place in a shared fleet.

    Args:
        path: the manifest.
        home, keep: see `WorldOptions`.
        fleets: the engine's.
        how: more of `WorldOptions`; in a shared fleet, `revertible` alone means something.

    Raises: ConfigError (the manifest), UnsupportedError (what a shared fleet cannot have).
    """
    manifest = load_manifest(path)
    if manifest.environment.topology == "shared-fleet":
        return FleetEnvironment(manifest, fleets, home, how.get("revertible", False))
    return ManifestEnvironment(manifest, WorldOptions(make_driver, home, keep, **how))
