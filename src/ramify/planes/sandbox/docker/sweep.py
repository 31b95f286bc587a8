"""Removing what engines that died left behind on a daemon."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ramify.planes.sandbox.docker.client import ApiError, EngineClient, Json
from ramify.planes.sandbox.docker.images import remove_image
from ramify.planes.sandbox.docker.launch import remove_container
from ramify.planes.sandbox.docker.networks import remove_network
from ramify.planes.sandbox.docker.owners import ENGINE_LABEL, forget_orphan, is_orphan
from ramify.planes.sandbox.docker.runtime import DATA_LABEL, remove_volume

_OFFSET = re.compile(r"[+-]\d\d:\d\d$")
_KEPT = timedelta(days=14)
_NEVER_STARTED = timedelta(hours=1)
_CONFLICT = 409


async def sweep(client: EngineClient, home: Path) -> int:
    """Remove what dead engines of this home left: containers, networks, volumes, frozen images,
    half-filled runtimes; how many. What never started, or is old, goes whosever it was.
    """
    info: Json = await client.call("GET", "/info", "tell the time")
    now = _moment(info["SystemTime"])
    removed = 0
    swept: list[Json] = []
    for item in await _orphans(client, home, "/containers/json", {"all": "1"}):
        removed += await remove_container(client, str(item["Id"]))
        swept.append(item["Labels"])
    removed += await _remove_stale(client, now - _NEVER_STARTED)
    for item in await _orphans(client, home, "/networks", {}):
        removed += await remove_network(client, str(item["Id"]))
        swept.append(item["Labels"])
    for item in await _remove_images(client, await _orphans(client, home, "/images/json", {})):
        removed += 1
        swept.append(item["Labels"])
    used = await _runtimes(client)
    removed += await _remove_old(client, used, now - _KEPT)
    for item in await _orphans(client, home, "/volumes", {}):
        if item["Name"] not in used:
            removed += await remove_volume(client, str(item["Name"]))
            swept.append(item["Labels"])
    for labels in swept:
        forget_orphan(labels, home)
    return removed


async def _remove_images(client: EngineClient, pending: list[Json]) -> list[Json]:
    """Remove images; those that were removed.

    Docker refuses one from which another was made, and does not say which of two made in the same
    second is the older. What is refused in the end is somebody's, and left for another time.
    """
    removed: list[Json] = []
    while pending:
        refused: list[Json] = []
        for item in pending:
            try:
                if await remove_image(client, str(item["Id"])):
                    removed.append(item)
            except ApiError as error:
                if error.status != _CONFLICT:
                    raise
                refused.append(item)
        if len(refused) == len(pending):
            break
        pending = refused
    return removed


async def _orphans(
    client: EngineClient, home: Path, path: str, query: dict[str, str]
) -> list[Json]:
    """Newest first, so that images go before the images that they were made from."""
    found = await _list(client, path, query, ENGINE_LABEL)
    items = [item for item in found if is_orphan(item.get("Labels") or {}, home)]
    return sorted(items, key=lambda item: str(item.get("Created", "")), reverse=True)


async def _runtimes(client: EngineClient) -> dict[str, Json]:
    """Pointers of finished runtimes, by the volume with the files, whoever filled it."""
    pointers = await _list(client, "/volumes", {}, DATA_LABEL)
    return {str(item["Labels"][DATA_LABEL]): item for item in pointers}


async def _remove_stale(client: EngineClient, limit: datetime) -> int:
    """Remove containers of any engine that never ran: no engine that lives waits so long."""
    found = await _list(client, "/containers/json", {"all": "1"}, ENGINE_LABEL)
    removed = 0
    for item in found:
        if item["State"] == "created" and datetime.fromtimestamp(item["Created"], UTC) < limit:
            removed += await remove_container(client, str(item["Id"]))
    return removed


async def _remove_old(client: EngineClient, runtimes: dict[str, Json], limit: datetime) -> int:
    """Remove runtimes made long ago that no container uses; one still wanted is made again."""
    removed = 0
    for volume, pointer in runtimes.items():
        # The files first: Docker refuses while a container uses them.
        if _moment(pointer["CreatedAt"]) < limit and await remove_volume(client, volume):
            removed += 1 + await remove_volume(client, str(pointer["Name"]))
    return removed


def _moment(text: str) -> datetime:
    """A time of the daemon, whose nanoseconds no parser here takes."""
    offset = _OFFSET.search(text)
    return datetime.fromisoformat(text[:19] + (offset[0] if offset else "+00:00")).astimezone(UTC)


async def _list(client: EngineClient, path: str, query: dict[str, str], label: str) -> list[Json]:
    filters = json.dumps({"label": [label]})
    found: Any = await client.call(
        "GET", path, "list what is there", query={**query, "filters": filters}
    )
    items: list[Json] | None = found["Volumes"] if path == "/volumes" else found
    return items or []
