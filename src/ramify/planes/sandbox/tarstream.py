"""A streaming reader of tar archives of hostile origin.

`TarStream` is fed bytes as they come and calls a `TarSink` for each entry. It reads ustar, pax and
GNU long names, holds at most a few hundred KiB whatever the headers claim, and allocates nothing
that a header asks for. Sparse files are refused. What may be created, and where, is the sink's
business: names are passed on as they stand in the archive.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ramify.contracts.errors import SandboxError, TransferLimitError

BLOCK = 512
FILE, HARD_LINK, SYMLINK, CHAR_DEVICE, BLOCK_DEVICE, DIRECTORY, FIFO = "0123456"
"""Kinds of entries: the type characters of tar. Any other character is an unknown kind."""

_MAX_META = 256 * 1024
_MAX_META_IN_A_ROW = 16
_REGULAR = frozenset((b"0", b"\0", b"7"))
_NO_DATA = frozenset(b"123456"[i : i + 1] for i in range(6))
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse"


class TarEntry(NamedTuple):
    """One entry as the archive states it; `size` counts the data bytes that follow.

    `device` is (major, minor). `xattrs` come from pax headers.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]


class TarSink(Protocol):
    """What a `TarStream` calls, in order: `entry`, then for FILE entries `data`* and `end`."""

    def entry(self, entry: TarEntry) -> None:
        """A header was read."""
        ...

    def data(self, chunk: memoryview) -> None:
        """Next bytes of the current file; only valid during the call."""
        ...

    def end(self) -> None:
        """The current file is complete."""
        ...


class TarStream:
    """Parses a tar archive pushed into it.

    Raises TransferLimitError where the archive is malformed: only the inside can have caused that,
    so trying again cannot help.
    """

    def __init__(self, sink: TarSink) -> None:
        self._sink = sink
        self._held = bytearray()  # an incomplete header block, or meta data being collected
        self._meta = b""  # kind of the meta entry being collected
        self._meta_size = 0
        self._need = BLOCK  # size that `_held` must reach
        self._left = 0  # data bytes of the current entry still to come
        self._pad = 0  # padding bytes after them
        self._in_file = False
        self._pax: dict[bytes, bytes] = {}
        self._global: dict[bytes, bytes] = {}
        self._meta_seen = 0
        self._zeros = 0
        self.ended = False

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes. Bytes after the end mark are ignored. Raises: TransferLimitError."""
        view = memoryview(data)
        while view and not self.ended:
            if self._left:
                view = self._take_data(view)
            elif self._pad:
                skip = min(self._pad, len(view))
                self._pad -= skip
                view = view[skip:]
            elif not self._held and not self._meta and len(view) >= BLOCK:
                block = bytes(view[:BLOCK])
                view = view[BLOCK:]
                self._block(block)
            else:
                missing = self._need - len(self._held)
                self._held += view[:missing]
                view = view[missing:]
                if len(self._held) == self._need:
                    held = bytes(self._held)
                    self._held.clear()
                    self._need = BLOCK
                    self._collected(held)

    def finish(self) -> None:
        """State that no more bytes come. Raises: SandboxError (the archive ended early)."""
        if not self.ended:
            raise SandboxError("the archive ended early: its sender died or was stopped")

    def _take_data(self, view: memoryview) -> memoryview:
        chunk = view[: self._left]
        self._left -= len(chunk)
        if self._in_file:
            self._sink.data(chunk)
            if not self._left:
                self._in_file = False
                self._sink.end()
        return view[len(chunk) :]

    def _collected(self, held: bytes) -> None:
        if not self._meta:
            self._block(held)
            return
        kind, self._meta = self._meta, b""
        held = held[: self._meta_size]
        if kind == b"L":
            self._pax[b"path"] = held.split(b"\0", 1)[0]
        elif kind == b"K":
            self._pax[b"linkpath"] = held.split(b"\0", 1)[0]
        elif kind == b"x":
            self._pax.update(_pax_records(held))
        else:
            self._take_global(_pax_records(held))

    def _take_global(self, records: dict[bytes, bytes]) -> None:
        """Only what makes sense for all entries; anything else would cost memory for ever."""
        for key, value in records.items():
            if key in (b"uid", b"gid", b"mtime"):
                self._global[key] = value[:32]
            elif key.startswith(_SPARSE):
                self._global[_SPARSE] = b"1"

    def _block(self, block: bytes) -> None:
        if block == _ZERO:
            self._zeros += 1
            self.ended = self._zeros == 2
            return
        self._zeros = 0
        _check_sum(block)
        size, kind = _number(block[124:136], "size"), block[156:157]
        if kind in (b"x", b"g", b"L", b"K"):
            self._start_meta(kind, size)
            return
        entry = self._entry(block, size, kind)
        self._pax = {}
        self._meta_seen = 0
        self._left = entry.size
        self._pad = -entry.size % BLOCK
        self._sink.entry(entry)
        if entry.kind == FILE:
            self._in_file = entry.size > 0
            if not self._in_file:
                self._sink.end()

    def _start_meta(self, kind: bytes, size: int) -> None:
        self._meta_seen += 1
        if size > _MAX_META or self._meta_seen > _MAX_META_IN_A_ROW:
            raise TransferLimitError("malformed archive: its extended headers are too large")
        if size:
            self._meta, self._meta_size, self._need = kind, size, size + -size % BLOCK

    def _entry(self, block: bytes, size: int, kind: bytes) -> TarEntry:
        pax = {**self._global, **self._pax} if self._global or self._pax else {}
        if kind == b"S" or any(key.startswith(_SPARSE) for key in pax):
            raise TransferLimitError("the archive holds a sparse file, which is not supported")
        name = pax.get(b"path")
        if name is None:
            name = block[:100].split(b"\0", 1)[0]
            prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
            if prefix:
                name = prefix + b"/" + name
        if b"size" in pax:
            size = _decimal(pax[b"size"], "size")
        shown = FILE if kind in _REGULAR else kind.decode("latin-1")
        if shown == FILE and name.endswith(b"/"):  # how archives before POSIX wrote directories
            shown = DIRECTORY
        return TarEntry(
            name,
            shown,
            _number(block[100:108], "mode"),
            _decimal(pax[b"uid"], "uid") if b"uid" in pax else _number(block[108:116], "uid"),
            _decimal(pax[b"gid"], "gid") if b"gid" in pax else _number(block[116:124], "gid"),
            0 if kind in _NO_DATA else size,
            _seconds(pax[b"mtime"]) if b"mtime" in pax else _number(block[136:148], "mtime"),
            pax.get(b"linkpath") or block[157:257].split(b"\0", 1)[0],
            (_number(block[329:337], "device"), _number(block[337:345], "device")),
            {k[len(_XATTR) :]: v for k, v in pax.items() if k.startswith(_XATTR)} if pax else {},
        )


def _malformed(what: str) -> TransferLimitError:
    return TransferLimitError(f"malformed archive: bad {what}")


def _check_sum(block: bytes) -> None:
    try:
        stated = int(block[148:156].strip(b"\0 "), 8)
    except ValueError:
        raise _malformed("checksum") from None
    actual = sum(block) - sum(block[148:156]) + 256
    if stated != actual:
        raise _malformed("checksum")


def _number(raw: bytes, what: str) -> int:
    """An octal or base-256 field. Negative values (mtime before 1970) become 0."""
    if raw[0] & 0x80:
        if raw[0] == 0xFF:
            return 0
        return int.from_bytes(bytes((raw[0] & 0x7F,)) + raw[1:], "big")
    text = raw.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        if what == "mtime" or what == "device":
            return 0
        raise _malformed(what)
    try:
        return int(text, 8)
    except ValueError:
        raise _malformed(what) from None


def _decimal(raw: bytes, what: str) -> int:
    if not raw.isdigit() or len(raw) > 20:
        raise _malformed(what)
    return int(raw)


def _seconds(raw: bytes) -> int:
    """A pax time, of which the fraction is dropped; anything else counts as 0."""
    whole = raw.split(b".", 1)[0]
    return int(whole) if whole.isdigit() and len(whole) <= 20 else 0


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 9)
        if space < 0 or not data[at:space].isdigit():
            raise _malformed("extended header")
        end = at + int(data[at:space])
        key, sign, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or not sign or data[end - 1 : end] != b"\n":
            raise _malformed("extended header")
        if value:
            records[key] = value
        else:
            records.pop(key, None)
        at = end
    return records
