"""Mends what CRIU writes down and could not restore here. Standard library only; it runs inside.

- A daemon whose session leader has ended. CRIU makes such a session again only for children of the
  dumped root; ours hang below the reaper of their command. So they come back in the session of the
  nearest ancestor.
- The order of siblings, which a restore turns round, and which matters (see pod.c).
- An open /dev/tty. Its owner is the host's root, who cannot be given to a file in here, and need
  not be: the device is there. So CRIU is not told an owner.

Images are files of protobuf entries, each with its length before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

_PROCESSES, _TERMINALS = "pstree.img", "tty-info.img"
_PID, _PPID, _SID = 1, 2, 4
_TYPE, _OWNERS, _CONTROLLING = 2, (14, 15), 4

_Fields = list[tuple[int, int, bytes | int]]


def mend(images: int) -> None:
    """Rewrite what needs it in a directory of images. Raises OSError, ValueError."""
    _rewrite(images, _PROCESSES, _mend_sessions)
    _rewrite(images, _TERMINALS, _mend_owners)


def _rewrite(images: int, name: str, change: Callable[[list[_Fields]], bool]) -> None:
    try:
        with open(os.open(name, os.O_RDONLY, dir_fd=images), "rb") as file:
            data = file.read()
    except FileNotFoundError:  # there was nothing of the kind
        return
    magic, at = data[:8], 8
    entries: list[_Fields] = []
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        entries.append(_parse(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if not change(entries):
        return
    packed = [_pack(entry) for entry in entries]
    whole = magic + b"".join(struct.pack("<I", len(one)) + one for one in packed)
    with open(os.open(name, os.O_WRONLY | os.O_TRUNC, dir_fd=images), "wb") as file:
        file.write(whole)


def _mend_owners(entries: list[_Fields]) -> bool:
    changed = False
    for entry in entries:
        if _value(entry, _TYPE) == _CONTROLLING:
            entry[:] = [field for field in entry if field[0] not in _OWNERS]
            changed = True
    return changed


def _mend_sessions(entries: list[_Fields]) -> bool:
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
    return _turn(entries) or changed


def _turn(entries: list[_Fields]) -> bool:
    """Put siblings in the opposite order; CRIU starts the last one first."""
    below: dict[int, list[_Fields]] = {}
    for entry in entries:
        below.setdefault(_value(entry, _PPID), []).append(entry)
    turned: list[_Fields] = []
    queue = [entries[0]]
    while queue:
        entry = queue.pop()
        turned.append(entry)
        queue += below.get(_value(entry, _PID), [])  # the last one is taken first
    if len(turned) != len(entries):
        raise ValueError("the processes do not hang together")
    entries[:] = turned
    return True


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
            raise ValueError("an image is not of a known form")
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
