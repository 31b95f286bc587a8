"""Turning what a sandbox wrote into a layer and an image of a store."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from ramify.contracts.errors import SandboxError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layer_claim import chain_digest, trash_in
from ramify.planes.sandbox.layer_index import (
    ImageRecord,
    LayerRecord,
    add_ref,
    boot_id,
    drop_ref,
    exclusive,
    new_id,
    remove_path,
    write_json,
)
from ramify.planes.sandbox.layer_merge import merge_layers
from ramify.planes.sandbox.layer_scratch import LayerScratch, measured

MAX_DEPTH = 64
"""Freezing on top of this many frozen layers merges them into one."""

_MOST_LAYERS = 480
"""Where layers could not be merged, an image may have this many. The kernel's limit is 500."""

_LOG = logging.getLogger("ramify.sandbox.layers")


class Freezer:
    """Makes images from scratch directories; blocking, for any number of threads.

    Each step leaves the store in order if it is the last one: what is half made lies in the
    engine's own directory or has no image yet, and `sweep` removes it once the engine is dead.

    Args:
        root: the store. home: the directory of its engine. engine: id of that engine.
        max_depth: so many frozen layers are merged when another one comes on top.
    """

    def __init__(self, root: Path, home: Path, engine: str, max_depth: int = MAX_DEPTH) -> None:
        self._root, self._home, self._engine = root, home, engine
        self._layers = root / "layers"
        self._max_depth = max_depth

    def freeze(self, scratch: LayerScratch) -> SandboxImage:
        """See `LayerStore.freeze`."""
        record = scratch.record
        if record is not None and scratch.is_unchanged:
            return self._frozen_again(scratch, record)
        below = record.layers if record else ()
        with trash_in(self._home) as trash:
            os.rename(scratch.work, trash / "work")
            diff = scratch.upper
            if record and len(below) - record.base_depth >= self._max_depth:
                cut = len(below) - record.base_depth
                if self._merged(scratch, below[:cut], len(below)):
                    diff, below = scratch.path / "merged", below[cut:]
            return self._add_layer(scratch, diff, below, trash)

    def _frozen_again(self, scratch: LayerScratch, record: ImageRecord) -> SandboxImage:
        again = self._own(record, new_id(), record.id, record.layers)
        again = msgspec.structs.replace(again, digest=record.digest, size_bytes=0)
        with trash_in(self._home) as trash, exclusive(self._root):
            add_ref(self._root, record.layers[0], f"i-{again.id}")
            write_json(self._root / "images" / f"{again.id}.json", again, sync=False)
            os.rename(scratch.path, trash / scratch.id)
            if scratch.top:
                drop_ref(self._root, scratch.top, scratch.holder, trash)
        return again.as_image()

    def _add_layer(
        self, scratch: LayerScratch, diff: Path, below: tuple[str, ...], trash: Path
    ) -> SandboxImage:
        image = scratch.image
        layer, image_id = new_id(), new_id()
        digest = chain_digest(image.digest if image else "", os.urandom(32))
        size = measured(scratch.upper)
        start = scratch.record or _outside(image)
        record = self._own(start, image_id, image.id if image else None, (layer, *below))
        record = msgspec.structs.replace(record, digest=digest, size_bytes=size)
        refs = scratch.path / "refs"
        refs.mkdir()
        (refs / f"i-{image_id}").touch()
        meta = LayerRecord(below[0] if below else None, digest, size)
        write_json(scratch.path / "meta.json", meta, sync=False)
        os.rename(diff, scratch.path / "diff")
        if diff != scratch.upper:
            os.rename(scratch.upper, trash / "upper")
        with exclusive(self._root):
            if below:
                add_ref(self._root, below[0], f"l-{layer}")
            os.rename(scratch.path, self._layers / layer)
            write_json(self._root / "images" / f"{image_id}.json", record, sync=False)
            if scratch.top:
                drop_ref(self._root, scratch.top, scratch.holder, trash)
        return record.as_image()

    def _own(
        self, record: ImageRecord, image_id: str, parent: str | None, layers: tuple[str, ...]
    ) -> ImageRecord:
        """The record of an image frozen by this engine from that of `record`."""
        return msgspec.structs.replace(
            record,
            id=image_id,
            layers=layers,
            parent=parent,
            pristine=False,
            content=record.content if layers == record.layers else None,
            engine=self._engine,
            boot=boot_id(),
        )

    def _merged(self, scratch: LayerScratch, own: tuple[str, ...], depth: int) -> bool:
        """Merge what was written and the layers `own` into `merged`; whether that was possible.

        Raises: SandboxError (it was not, and there may be no more layers).
        """
        target = scratch.path / "merged"
        target.mkdir()
        try:
            merge_layers([scratch.upper, *(self._diff(layer) for layer in own)], target)
        except (OSError, SandboxError) as error:
            # Merging keeps deep stacks quick; without it they go on, up to the kernel's limit.
            remove_path(target)
            if depth >= _MOST_LAYERS:
                raise SandboxError(
                    f"the sandbox has {depth} layers, which cannot be merged: {error}"
                ) from error
            _LOG.warning("%d frozen layers could not be merged: %s", len(own), error)
            return False
        return True

    def _diff(self, layer: str) -> Path:
        return self._layers / layer / "diff"


def _outside(image: SandboxImage | None) -> ImageRecord:
    """As a record: an image that is not of this store, or none at all."""
    if image is None:
        return ImageRecord("", (), "", 0)
    return ImageRecord(
        id=image.id,
        layers=(),
        digest=image.digest,
        size_bytes=0,
        env=image.env,
        user=image.user,
        workdir=image.workdir,
        entrypoint=image.entrypoint,
        command=image.cmd,
        healthcheck=image.healthcheck,
        base=image.id,
    )
