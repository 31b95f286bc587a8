"""Large payloads beside the log: content-addressed files, each stored once.

`blobs/ab/<62 hex digits>` holds the zlib-compressed payload whose BLAKE2b-256 digest is the name.
A line of the log refers to it by a last member `"blobs"`: place in the event → [digest, bytes].
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ramify.contracts.errors import StoreError
from ramify.contracts.events import NodeEvent
from ramify.contracts.messages import Message

_DRAFT = ".draft"  # one is enough: a job has one writer, and that one thread for this
_SPILL_CHARS = 16 * 1024  # strings in messages longer than this are stored as blobs

Reference = tuple[str, int]
"""Digest in hex, and the payload's size in bytes."""

_COMPRESSION = 1  # zlib level: text shrinks to a third at ~100 MB/s


class _Referring(msgspec.Struct):
    blobs: dict[str, Reference] = {}


_references = msgspec.json.Decoder(_Referring)


class BlobStore:
    """Payloads of one job, below `root`. `write` and `sync` are for one thread at a time.

    Args:
        root: the `blobs` directory; made when the first payload is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: set[str] = set()
        self._unsynced: list[Path] = []
        self._suspect = False

    limit = _SPILL_CHARS
    """Lines up to this many bytes hold no string that is large enough to be taken out."""

    def split(self, record: Any) -> tuple[Any, bytes, Mapping[str, bytes]]:
        """Take long strings out of a NodeEvent; see `ramify.engine.journal.Spill`."""
        if not isinstance(record, NodeEvent):
            return record, b"", {}
        event, references, payloads = _split(record)
        members = b',"blobs":' + msgspec.json.encode(references) if references else b""
        return event, members, payloads

    def write(self, digest: str, payload: bytes) -> None:
        """Store a payload under its digest; durable after the next `sync`. Raises OSError."""
        if digest in self._known:
            return
        path = self._path(digest)
        if not self._holds(path, digest):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(path, zlib.compress(payload, _COMPRESSION))
        self._known.add(digest)
        self._unsynced.append(path)

    def sync(self) -> None:
        """Make durable everything written so far, names included.

        Raises OSError, then a later call tries again; StoreError if a payload was lost meanwhile.
        """
        if not self._unsynced:
            return
        if self._suspect:
            self._rewrite()
        self._suspect = True
        for path in self._unsynced:
            _fsync(path)
        for directory in {path.parent for path in self._unsynced}:
            _fsync(directory)
        _fsync(self._root)
        _fsync(self._root.parent)
        self._unsynced.clear()
        self._suspect = False

    def _rewrite(self) -> None:
        # After a failed fsync the kernel counts pages as clean that never reached the disk.
        for path in self._unsynced:
            if not self._holds(path, path.parent.name + path.name):
                raise StoreError(f"{path}: this payload was lost when the disk failed")
            self._replace(path, path.read_bytes())

    def _replace(self, path: Path, packed: bytes) -> None:
        draft = self._root / _DRAFT
        try:
            draft.write_bytes(packed)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def clear(self) -> None:
        """Remove what a writer left half written that was killed. Raises OSError."""
        (self._root / _DRAFT).unlink(missing_ok=True)

    def read(self, reference: Reference) -> bytes:
        """The payload. Raises StoreError where it is missing or is not what was stored."""
        digest, size = reference
        path = self._path(digest)
        try:
            unpacked = zlib.decompressobj().decompress(path.read_bytes(), size + 1)
        except FileNotFoundError:
            raise StoreError(
                f"{path}: this payload is missing; restore it from a copy of the job directory"
            ) from None
        except (OSError, zlib.error) as error:
            raise StoreError(f"{path}: this payload cannot be read ({error})") from error
        if len(unpacked) != size or _digest(unpacked) != digest:
            raise StoreError(
                f"{path}: this payload is damaged; restore it from a copy of the job directory"
            )
        return unpacked

    def _path(self, digest: str) -> Path:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise StoreError(f"{self._root}: {digest[:80]!r} is not the digest of a payload")
        return self._root / digest[:2] / digest[2:]

    def _holds(self, path: Path, digest: str) -> bool:
        # A file from before may be empty or torn if the machine went down before it was synced.
        try:
            return _digest(zlib.decompress(path.read_bytes())) == digest
        except (FileNotFoundError, zlib.error):
            return False


def _split(event: NodeEvent) -> tuple[NodeEvent, dict[str, Reference], dict[str, bytes]]:
    # The event without its long strings, references by place, and payloads by digest.
    references: dict[str, Reference] = {}
    payloads: dict[str, bytes] = {}
    for place, text in _strings(event):
        if len(text) > _SPILL_CHARS:
            payload = text.encode()
            digest = _digest(payload)
            payloads[digest] = payload
            references[place] = (digest, len(payload))
    for place in references:
        event = _put(event, place, "")
    return event, references, payloads


def references_in(line: bytes) -> Mapping[str, Reference]:
    """References that a line of the log holds, by place in its event."""
    if b',"blobs":{' not in line:
        return {}
    return _references.decode(line).blobs


def join(event: NodeEvent, references: Mapping[str, Reference], blobs: BlobStore) -> NodeEvent:
    """Put payloads back where they were taken out them. Raises StoreError."""
    for place, reference in references.items():
        try:
            event = _put(event, place, blobs.read(reference).decode())
        except (LookupError, ValueError, TypeError, AttributeError):
            raise StoreError(
                f"a payload belongs at {place[:80]!r}, which its event does not have"
            ) from None
    return event


def _strings(event: NodeEvent) -> Iterator[tuple[str, str]]:
    groups = {"messages": event.messages, "step": event.step.messages if event.step else ()}
    for group, messages in groups.items():
        for index, message in enumerate(messages):
            yield f"{group}/{index}/content", message.content
            if message.reasoning is not None:
                yield f"{group}/{index}/reasoning", message.reasoning
            for number, call in enumerate(message.tool_calls):
                yield f"{group}/{index}/arguments/{number}", call.arguments


def _put(event: NodeEvent, place: str, text: str) -> NodeEvent:
    group, index, field, *rest = place.split("/")
    if group == "messages":
        messages = _with(event.messages, int(index), field, rest, text)
        return msgspec.structs.replace(event, messages=messages)
    if group != "step" or event.step is None:
        raise LookupError(place)
    messages = _with(event.step.messages, int(index), field, rest, text)
    return msgspec.structs.replace(
        event, step=msgspec.structs.replace(event.step, messages=messages)
    )


def _with(
    messages: tuple[Message, ...], index: int, field: str, rest: list[str], text: str
) -> tuple[Message, ...]:
    message = messages[index]
    if field not in ("content", "reasoning", "arguments"):
        raise LookupError(field)
    changes: dict[str, Any] = {field: text}
    if field == "arguments":
        calls = list(message.tool_calls)
        calls[int(rest[0])] = msgspec.structs.replace(calls[int(rest[0])], arguments=text)
        changes = {"tool_calls": tuple(calls)}
    changed = msgspec.structs.replace(message, **changes)
    return (*messages[:index], changed, *messages[index + 1 :])


def _digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=32).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
