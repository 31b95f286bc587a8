"""Messages between engine, spawner and supervisors: JSON over SEQPACKET sockets, with descriptors.

A message too long for one packet travels in an anonymous file passed as its first descriptor.
Standard library only; both ends are ours, nothing inside a sandbox ever holds such a socket.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

_PACKET = 32 * 1024
_LONG = b"@"
_MAX_FDS = 8

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets for messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send a message. Raises OSError: BlockingIOError when full, ConnectionError when gone."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= _PACKET:
        socket.send_fds(sock, [data], list(fds))
        return
    spill = os.memfd_create("message")
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(spill, view) :]
        socket.send_fds(sock, [_LONG], [spill, *fds])
    finally:
        os.close(spill)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors; None at the end. Raises BlockingIOError."""
    room = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    try:
        data, ancillary, _flags, _peer = sock.recvmsg(_PACKET, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    if not data:
        return None
    if data == _LONG:
        with open(fds.pop(0), "rb") as spill:
            spill.seek(0)
            data = spill.read()
    return json.loads(data), fds
