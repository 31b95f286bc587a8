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
from contextlib import contextmanager, suppress

_NEW_QUEUE, _DELETE_QUEUE = 36, 37
_REQUEST, _ACK, _REPLACE, _CREATE = 0x1, 0x4, 0x100, 0x400
_ROOT = 0xFFFFFFFF
_KIND, _OPTIONS = 1, 2
_DESTROY = 21
_SOCKET_DIAG = 4
_NO_COOKIE = b"\xff" * 8
_MAPPED = "0000000000000000FFFF0000"
_LISTENING = "0A"


@contextmanager
def packets_held() -> Generator[None]:
    """Nothing moves on the loopback device meanwhile. Raises OSError."""
    device = socket.if_nametoindex("lo")
    kind = struct.pack("HH", 10, _KIND) + b"pfifo\0" + b"\0\0"
    limit = struct.pack("HHI", 8, _OPTIONS, 0)
    _ask(_NEW_QUEUE, _REQUEST | _ACK | _REPLACE | _CREATE, _queue(device, kind + limit))
    try:
        yield
    finally:
        _ask(_DELETE_QUEUE, _REQUEST | _ACK, _queue(device, b""))


def end_halves() -> None:
    """End connections whose other end is not in this namespace: it was ours, and was not copied.

    Who reads from one learns of it, instead of waiting for ever; unless the kernel cannot do that.
    """
    rows: list[tuple[str, str, bool]] = []
    for name, is_six in (("tcp", False), ("tcp6", True)):
        with open(f"/proc/net/{name}") as file:
            fields = [line.split() for line in file.readlines()[1:]]
        rows += [(row[1], row[2], is_six) for row in fields if row[3] != _LISTENING]
    ends = {(_plain(here), _plain(there)) for here, there, _six in rows}
    for here, there, is_six in rows:
        if (_plain(there), _plain(here)) not in ends:
            with suppress(OSError):  # it ends at this moment, or this kernel cannot end it
                _destroy(here, there, socket.AF_INET6 if is_six else socket.AF_INET)


def _plain(end: str) -> str:
    """An address and port as /proc/net shows them; IPv4 in the form of IPv6 as IPv4."""
    return end[len(_MAPPED) :] if end.startswith(_MAPPED) else end


def _destroy(here: str, there: str, family: int) -> None:
    places = [end.split(":") for end in (here, there)]
    ports = b"".join(struct.pack(">H", int(port, 16)) for _address, port in places)
    addresses = b"".join(_bytes(address).ljust(16, b"\0") for address, _port in places)
    request = struct.pack("BBBxI", family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
    request += ports + addresses + struct.pack("I", 0) + _NO_COOKIE
    _ask(_DESTROY, _REQUEST | _ACK, request, _SOCKET_DIAG)


def _bytes(address: str) -> bytes:
    """The kernel shows an address as numbers of this machine's byte order."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return struct.pack(f"={len(words)}I", *words)


def _queue(device: int, attributes: bytes) -> bytes:
    return struct.pack("BxxxiIII", socket.AF_UNSPEC, device, 0, _ROOT, 0) + attributes


def _ask(kind: int, flags: int, body: bytes, protocol: int = 0) -> None:
    message = struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as line:
        line.bind((0, 0))
        line.send(message)
        answer = line.recv(4096)
    (code,) = struct.unpack_from("i", answer, 16)
    if code:
        raise OSError(-code, f"the network of the sandbox cannot be changed: {os.strerror(-code)}")
