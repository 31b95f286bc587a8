"""Dumps of processes on the host: what is written down, and where it lies. Blocking.

```
run/<engine>/dumps/<image>/images     CRIU's files, and what the inside noted (captor.FACTS)
                          /record     our own part, under a checksum
```
They live as long as the engine: its directory goes with it, or is swept after it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

import msgspec

from ramify.contracts.errors import SandboxStartError

_RECORD = "record"


class StreamRecord(msgspec.Struct, frozen=True):
    """A pipe between a captured command and us: its inode of then, and what stood in it."""

    inode: int
    data: bytes = b""


class JobRecord(msgspec.Struct, frozen=True):
    """A captured command.

    `job` and `gone` are the supervisor's (see `pod.PodJob`). `status` is its exit as the engine
    heard of it. `streams` are input, output, and errors or the terminal's size; None: closed. Of
    `collected` ones nobody reads the output any more.
    """

    job: dict[str, int | bool]
    gone: bool
    status: int | None
    collected: bool
    terminal: bool
    streams: tuple[StreamRecord | None, StreamRecord | None, StreamRecord | None]


class DumpRecord(msgspec.Struct, frozen=True):
    """Everything that a restore needs besides CRIU's files, whose sizes it holds.

    `files` are those open for writing, with the inode number they must keep.
    """

    pod: int
    highest: int
    jobs: tuple[JobRecord, ...]
    files: tuple[tuple[str, int], ...]
    sizes: dict[str, int]


_decoder = msgspec.json.Decoder(DumpRecord)


class Dumps:
    """The dumps below one directory. Any thread may call it."""

    def __init__(self, place: Path) -> None:
        self._place = place

    @property
    def place(self) -> Path:
        """The directory."""
        return self._place

    def begin(self, owner: int | None) -> Path:
        """A new directory for a dump, as yet without a name. Raises OSError."""
        place = self._place / f"new-{uuid.uuid4().hex[:12]}"
        images = place / "images"
        images.mkdir(parents=True)
        images.chmod(0o700)
        if owner is not None:
            os.chown(images, owner, owner)
        return place

    def finish(self, place: Path, image_id: str, record: DumpRecord) -> None:
        """Give a dump its name. Raises OSError."""
        body = msgspec.json.encode(record)
        (place / _RECORD).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        place.rename(self._place / image_id)

    def find(self, image_id: str) -> tuple[Path, DumpRecord]:
        """A dump's directory and record. Raises SandboxStartError (gone, or not as it was)."""
        place = self._place / image_id
        try:
            digest, _, body = (place / _RECORD).read_bytes().partition(b"\n")
        except OSError as error:
            raise SandboxStartError(
                f"the processes of the image {image_id} are not here: they were discarded, or"
                " belong to another engine"
            ) from error
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise SandboxStartError(f"the dump of the image {image_id} is corrupt: its record")
        record = _decoder.decode(body)
        found = sizes(place / "images")
        wrong = [name for name, size in record.sizes.items() if found.get(name) != size]
        if wrong:
            raise SandboxStartError(f"the dump of the image {image_id} is corrupt: {wrong[0]}")
        return place, record

    def remove(self, place: Path | str) -> None:
        """Remove a dump, by its directory or its image's id. Idempotent."""
        shutil.rmtree(self._place / place, ignore_errors=True)


def sizes(images: Path) -> dict[str, int]:
    """The sizes of a dump's files, logs left out."""
    found = {entry.name: entry.stat().st_size for entry in os.scandir(images)}
    return {name: size for name, size in found.items() if not name.endswith(".log")}
