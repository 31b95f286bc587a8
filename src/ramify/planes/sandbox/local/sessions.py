"""Mends what CRIU's list of processes cannot express: a daemon whose session leader has ended.

CRIU makes such a session again only for children of the dumped root; ours hang below the reaper of
their command. So they come back in the session that the nearest of their ancestors is in. Standard
library only; it runs inside. The list is a protobuf file of entries (pid, ppid, pgid, sid, threads).
"""

from __future__ import annotations

import os
import struct

_NAME = "pstree.img"
_PID, _PPID, _SID = 1, 2, 4

_Fields = list[tuple[int, int, bytes | int]]


def mend_sessions(images: int) -> None:
    """Rewrite the list of processes in a directory of images. Raises OSError, ValueError."""
    with open(os.open(_NAME, os.O_RDONLY, dir_fd=images), "rb") as file:
        data = file.read()
    magic, at = data[:8], 8
    entries: list[_Fields] = []
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        entries.append(_parse(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if not _mend(entries):
        return
    packed = [_pack(entry) for entry in entries]
    whole = magic + b"".join(struct.pack("<I", len(one)) + one for one in packed)
    with open(os.open(_NAME, os.O_WRONLY | os.O_TRUNC, dir_fd=images), "wb") as file:
        file.write(whole)


def _mend(entries: list[_Fields]) -> bool:
    alive = {_value(entry, _PID) for entry in entries}
    session: dict[int, int] = {}
    changed = False
    for entry in entries:  # parents come before their children
        pid, parent, sid = (_value(entry, field) for field in (_PID, _PPID, _SID))
        if sid not in alive and parent in session:
            sid = session[parent]
            entry[:] = [(f, kind, sid if f == _SID else value) for f, kind, value in entry]
            changed = True
        session[pid] = sid
    return changed


def _value(entry: _Fields, wanted: int) -> int:
    for field, _kind, value in entry:
        if field == wanted and isinstance(value, int):
            return value
    return 0


def _parse(data: bytes) -> _Fields:
    fields: _Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value, at = _varint(data, at)
        if key & 7 == 2:  # bytes: packed numbers
            fields.append((key >> 3, 2, data[at : at + value]))
            at += value
        elif key & 7 == 0:
            fields.append((key >> 3, 0, value))
        else:
            raise ValueError("the list of processes is not of a known form")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _pack(fields: _Fields) -> bytes:
    out = b""
    for field, kind, value in fields:
        out += _number(field << 3 | kind)
        out += _number(value) if isinstance(value, int) else _number(len(value)) + value
    return out
