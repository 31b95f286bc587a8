"""Where the layers of a store came from, so that those that are there need not be unpacked again.

An image's configuration names its layers by the digests of their plain archives (*diff ids*). For
each imported layer the store keeps which stack of diff ids it is the top of, and under which member
names archives held it: older Docker daemons name members in a way of their own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramify.planes.sandbox.layer_claim import Claim
from ramify.planes.sandbox.layer_index import exclusive, write_json

_FILE = "origin.json"
_BLOB = "blobs/sha256/"


class LayerOrigin(msgspec.Struct, frozen=True):
    """Of one layer: its stack, its own diff id, member names, and what its import has lost."""

    stack: str
    diff_id: str
    members: tuple[str, ...] = ()
    owners_lost: int = 0


_decoder = msgspec.json.Decoder(LayerOrigin)


class Held(NamedTuple):
    """The lowest layers of an image that are in the store already, and are kept for it.

    `depth` counts them, of an image of these `diff_ids`. `members` need not be unpacked.
    """

    depth: int
    diff_ids: tuple[str, ...]
    members: frozenset[str]


def hold_known(root: Path, claim: Claim, diff_ids: tuple[str, ...]) -> Held:
    """Add to `claim` as many of the lowest layers of an image as the store at `root` has."""
    if not diff_ids:
        return Held(0, (), frozenset())
    found = {layer: origin for layer in (root / "layers").iterdir() if (origin := _read(layer))}
    by_stack = {origin.stack: layer for layer, origin in found.items()}
    depth = 0
    while depth < len(diff_ids):
        layer = by_stack.get(_stack(diff_ids[: depth + 1]))
        if layer is None or not claim.hold(layer.name):
            break
        claim.owners_lost += found[layer].owners_lost
        depth += 1
    # One that occurs again further up is needed there.
    spared = set(diff_ids[:depth]) - set(diff_ids[depth:])
    members = frozenset(
        name
        for origin in found.values()
        if origin.diff_id in spared
        for name in (*origin.members, _BLOB + origin.diff_id.removeprefix("sha256:"))
    )
    return Held(depth, diff_ids, members)


def note_origin(
    root: Path, layer: str, diff_ids: tuple[str, ...], member: str, owners_lost: int
) -> None:
    """Remember of a layer that `diff_ids` lead to it, and that an archive calls it `member`."""
    path, stack = root / "layers" / layer, _stack(diff_ids)
    with exclusive(root):
        known = _read(path) or LayerOrigin(stack, diff_ids[-1], owners_lost=owners_lost)
        # The same files may come from another stack, whose members are not those of this one.
        if path.exists() and known.stack == stack and member not in known.members:
            noted = msgspec.structs.replace(known, members=(*known.members, member))
            write_json(path / _FILE, noted, sync=False)


def _read(layer: Path) -> LayerOrigin | None:
    """None where nothing is known, or nothing that can be read: then the layer is unpacked."""
    try:
        return _decoder.decode((layer / _FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _stack(diff_ids: tuple[str, ...]) -> str:
    return hashlib.blake2b("\0".join(diff_ids).encode(), digest_size=16).hexdigest()
