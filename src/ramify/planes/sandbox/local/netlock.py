"""Keeps the packets of a network namespace from moving while its connections are taken or put back.

Between two ends of a connection nothing may be acknowledged, resent or refused while one of them is
written down or made again and the other is not. A queue of length nought on the loopback device
drops every packet; TCP sends them again afterwards. Standard library only; it runs inside.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager

_NEW_QUEUE, _DELETE_QUEUE = 36, 37
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_ROOT = 0xFFFFFFFF
_KIND, _OPTIONS = 1, 2


@contextmanager
def packets_held() -> Generator[None]:
    """Nothing moves on the loopback device meanwhile. Raises OSError."""
    device = socket.if_nametoindex("lo")
    kind = struct.pack("HH", 10, _KIND) + b"pfifo\0" + b"\0\0"
    limit = struct.pack("HHI", 8, _OPTIONS, 0)
    _ask(_NEW_QUEUE, _REQUEST | _ACK | _REPLACE | _CREATE, device, kind + limit)
    try:
        yield
    finally:
        _ask(_DELETE_QUEUE, _REQUEST | _ACK, device, b"")


def _ask(kind: int, flags: int, device: int, attributes: bytes) -> None:
    body = struct.pack("BxxxiIII", socket.AF_UNSPEC, device, 0, _ROOT, 0) + attributes
    message = struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as line:
        line.bind((0, 0))
        line.send(message)
        answer = line.recv(4096)
    (code,) = struct.unpack_from("i", answer, 16)
    if code:
        raise OSError(-code, f"the loopback device cannot be held: {os.strerror(-code)}")
