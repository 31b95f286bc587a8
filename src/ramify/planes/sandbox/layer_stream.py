"""Image archives read as they come: each layer is unpacked when it passes by.

`docker save` and OCI layouts tell only at their end (or anywhere) which members are layers and in
which order, so layers are put on the side and stacked when the archive is complete.
"""

from __future__ import annotations

import hashlib
import posixpath
import zlib
from collections.abc import Callable
from pathlib import Path

from ramify.contracts.errors import ConfigError, SandboxError, UnsupportedError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layer_claim import Claim
from ramify.planes.sandbox.layer_copy import copy_over
from ramify.planes.sandbox.layer_index import remove_path
from ramify.planes.sandbox.layer_origin import Held, note_origin
from ramify.planes.sandbox.layer_unpack import LayerWriter
from ramify.planes.sandbox.oci import MAX_JSON, ImageManifest, read_manifest
from ramify.planes.sandbox.tarstream import FILE, HARD_LINK, SYMLINK, TarEntry, TarStream

_HEAD = 512
_PIECE = 4 * 1024 * 1024
_GZIP, _ZSTD, _XZ, _BZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh"


class Incoming:
    """An image archive on its way into a store, from `LayerStore.receive`. Close it.

    Every method blocks, one at a time, and raises ConfigError (malformed, damaged),
    UnsupportedError (a compression that cannot be read) and OSError.
    """

    def __init__(
        self,
        root: Path,
        claim: Claim,
        source: str,
        architecture: str,
        held: Held,
        register: Callable[[ImageManifest], SandboxImage],
    ) -> None:
        self._claim, self._register = claim, register
        self._reader = _ArchiveReader(root, claim, source, architecture, held)
        self._open = True

    @property
    def owners_lost(self) -> int:
        """How many of its files belong to somebody that sandboxes here cannot have."""
        return self._claim.owners_lost

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._reader.feed(data)

    def finish(self) -> SandboxImage:
        """State that no more bytes come; the image is in the store then, durably."""
        return self._register(self._reader.finish())

    def close(self) -> None:
        """Remove whatever no image needs. Idempotent."""
        if self._open:
            self._open = False
            self._reader.close()
            self._claim.__exit__(None, None, None)


class _ArchiveReader:
    """Takes an archive in pieces and adds its layers to `claim`. Blocking; close it.

    Args:
        root: the store.
        claim: what the layers are added to, when the archive is complete.
        source: what it is, for messages.
        architecture: of the image wanted, where there are several.
        held: the lowest layers, where `claim` has them already; they are only checked.

    Every method raises ConfigError (malformed, damaged, not exactly one image), UnsupportedError
    (a compression that cannot be read) and OSError.
    """

    def __init__(
        self, root: Path, claim: Claim, source: str, architecture: str, held: Held
    ) -> None:
        self._root, self._claim, self._held = root, claim, held
        self._source, self._architecture = source, architecture
        self._stream = TarStream(self)
        self._layers: dict[str, _Layer] = {}
        self._texts: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        self._name = ""
        self._head = bytearray()
        self._current: _Layer | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        try:
            self._stream.feed(data)
        except ConfigError:
            raise
        except SandboxError as error:
            raise ConfigError(f"bad image archive: {error}", self._source) from error

    def finish(self) -> ImageManifest:
        """State that no more bytes come, and stack the layers."""
        try:
            self._stream.finish()
        except SandboxError as error:
            raise ConfigError(f"bad image archive: {error}", self._source) from error
        known = {*self._layers, *self._texts, *self._links}
        manifest = read_manifest(
            {name: name for name in known}, self._text, self._source, self._architecture
        )
        if manifest is None:
            raise ConfigError("it is no image archive: it holds no manifest", self._source)
        if self._held.depth and manifest.diff_ids != self._held.diff_ids:
            raise ConfigError("it is not the image that was announced", self._source)
        checked = manifest.diff_ids or (None,) * len(manifest.layers)
        for position, (member, expected) in enumerate(zip(manifest.layers, checked, strict=True)):
            name = self._target(member)
            layer = self._layers.get(name)
            if layer is None:
                raise ConfigError(f"the layer {member} is no tar archive", self._source)
            if expected is not None and layer.digest != expected:
                raise ConfigError(
                    f"the layer {member} is damaged: its digest is {layer.digest}, not {expected}",
                    self._source,
                )
            if position >= self._held.depth:
                layer.stack(self._claim)
            stacked = self._claim.layers[position]
            if manifest.diff_ids:
                below = manifest.diff_ids[: position + 1]
                note_origin(self._root, stacked, below, name, layer.owners_lost)
        return manifest

    def close(self) -> None:
        """Remove what was not stacked. Idempotent."""
        for layer in self._layers.values():
            layer.close()
        self._layers.clear()

    # As the sink of the archive itself

    def entry(self, entry: TarEntry) -> None:
        """A member of the archive begins."""
        name = posixpath.normpath(entry.name.decode("utf-8", "surrogateescape"))
        self._name = name
        self._head.clear()
        if entry.kind == SYMLINK:
            self._links[name] = _joined(posixpath.dirname(name), entry.link)
        elif entry.kind == HARD_LINK:
            self._links[name] = _joined("", entry.link)
        elif entry.kind == FILE:
            self._links.pop(name, None)

    def data(self, chunk: memoryview) -> None:
        """Bytes of the current member: a layer's are unpacked, others kept."""
        if self._current is not None:
            self._current.feed(chunk)
            return
        if len(self._head) < _HEAD:
            missing = _HEAD - len(self._head)
            self._head += chunk[:missing]
            chunk = chunk[missing:]
            if len(self._head) == _HEAD and self._is_layer(bytes(self._head)):
                self._begin(chunk)
                return
        if len(self._head) + len(chunk) > MAX_JSON:
            raise ConfigError(f"{self._name} is too large for a description", self._source)
        self._head += chunk

    def end(self) -> None:
        """The current member is complete."""
        layer, self._current = self._current, None
        if layer is None and self._is_layer(bytes(self._head)):  # a compressed layer may be tiny
            layer = self._begin(memoryview(b""))
            self._current = None
        if layer is not None:
            layer.finish()
        else:
            self._texts[self._name] = bytes(self._head)

    def _is_layer(self, head: bytes) -> bool:
        for magic, what in ((_ZSTD, "zstd"), (_XZ, "xz"), (_BZIP, "bzip2")):
            if head.startswith(magic):
                raise UnsupportedError(
                    f"{self._source}: the layer {self._name} is compressed with {what}, which is"
                    " not supported; recompress it with gzip"
                )
        return (
            head.startswith(_GZIP)
            or head[257:262] == b"ustar"
            or (len(head) == _HEAD and not head.strip(b"\0"))
            or posixpath.basename(self._name) == "layer.tar"
        )

    def _begin(self, rest: memoryview) -> _Layer:
        if self._name in self._layers:
            self._layers.pop(self._name).close()
        packed, spared = self._head.startswith(_GZIP), self._name in self._held.members
        layer = _Layer(self._claim, self._name, self._source, packed, spared)
        self._layers[self._name] = self._current = layer
        layer.feed(memoryview(bytes(self._head)))
        layer.feed(rest)
        return layer

    def _target(self, name: str) -> str:
        """The member that a name leads to; links are followed a few times only."""
        for _ in range(8):
            if name not in self._links:
                break
            name = self._links[name]
        return name

    def _text(self, name: str) -> bytes | None:
        return self._texts.get(self._target(name))


class _Layer:
    """One layer on its way: unpacked on the side, with the digest of its plain archive.

    One that is `spared` is not unpacked: the store has it.
    """

    def __init__(self, claim: Claim, name: str, source: str, packed: bool, spared: bool) -> None:
        self._name, self._source = name, source
        self._work = claim.new_work()
        self._writer = None if spared else LayerWriter(self._work / "diff", whiteouts=True)
        self._hash = hashlib.sha256()
        self._inflate = zlib.decompressobj(31) if packed else None
        self._stacked: Path | None = None
        self.owners_lost = 0

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def feed(self, data: memoryview) -> None:
        if self._inflate is None:
            self._plain(data)
            return
        rest: bytes | memoryview = data
        try:
            while rest:
                self._plain(self._inflate.decompress(rest, _PIECE))
                rest = self._inflate.unconsumed_tail
                if self._inflate.eof:  # a gzip file may have several members
                    rest = self._inflate.unused_data
                    self._inflate = zlib.decompressobj(31)
        except zlib.error as error:
            raise ConfigError(f"the layer {self._name} is damaged: {error}", self._source) from None

    def finish(self) -> None:
        if self._writer is not None:
            self.owners_lost = self._writer.finish()
            self._writer.close()

    def stack(self, claim: Claim) -> None:
        """Put it on top of what `claim` has; it may occur more than once in an image."""
        if self._writer is None:
            raise ConfigError(f"the layer {self._name} was taken for another", self._source)
        claim.owners_lost += self.owners_lost
        if self._stacked is None:
            claim.adopt(self._work)
            self._stacked = claim.top / "diff"
        else:
            first = self._stacked
            claim.fill(lambda diff: copy_over(first, diff))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._work.exists():
            remove_path(self._work)

    def _plain(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        if self._writer is not None:
            self._writer.feed(data)


def _joined(directory: str, link: bytes) -> str:
    return posixpath.normpath(posixpath.join(directory, link.decode("utf-8", "surrogateescape")))
