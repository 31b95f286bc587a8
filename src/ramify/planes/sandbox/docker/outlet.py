"""Keeps a container with a network away from private addresses. Runs inside, standard library only.

Docker's bridge reaches the host, its neighbours and other containers. Before anything of the
sandbox runs, the supervisor puts policies into the container's network namespace that refuse every
packet to a private address (the kernel's IPsec policies: they need no program, module of the
firewall or rule on the host, and apply whatever interface or route a socket chooses). Port 53 of
the configured name servers stays open. Then the capability to change this is given up for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CAPABILITIES = ("NET_ADMIN", "SETPCAP")
"""What `close_private` needs and gives up."""

_NETLINK_XFRM = 6
_NEW_POLICY = 0x13
_REQUEST_AND_ACK = 0x5
_OUT = 1
_ALLOW, _BLOCK = 0, 1
_FOREVER = 2**64 - 1
_SIOCGIFADDR = 0x8915
_PR_CAPBSET_DROP = 24
_NUMBERS = (12, 8)  # of CAPABILITIES, in an order in which they can be given up
_CAP_VERSION_3 = 0x20080522
_PRIVATE = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.168.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
)


def close_private(exceptions: Sequence[str] = ()) -> None:
    """Refuse private addresses from now on, but for `exceptions`.

    These are `NET=address/bits` (of the sandbox's own networks), `DNS=address` (a name server,
    where /etc/resolv.conf names the daemon's own) and `TCP=address:port`; `SHUT=address` is
    refused like a private one. Raises: OSError where the kernel cannot do it.
    """
    allowed = [word.partition("=")[2] for word in exceptions if word.startswith("NET=")]
    servers = [word.partition("=")[2] for word in exceptions if word.startswith("DNS=")]
    shut = [word.partition("=")[2] for word in exceptions if word.startswith("SHUT=")]
    mirrors = [word.partition("=")[2] for word in exceptions if word.startswith("TCP=")]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM) as netlink:
        netlink.bind((0, 0))
        own = own_addresses()
        for address in own:
            _add(netlink, address, 32, _ALLOW)
        for network in allowed:
            address, _, bits = network.partition("/")
            _add(netlink, socket.inet_aton(address), int(bits), _ALLOW)
        for address in (*_name_servers(), *map(socket.inet_aton, servers)):
            for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
                _add(netlink, address, 32, _ALLOW, 53, protocol)
        for address, _, port in (mirror.partition(":") for mirror in mirrors):
            _add(netlink, socket.inet_aton(address), 32, _ALLOW, int(port), socket.IPPROTO_TCP)
        others = [address for address in shut if socket.inet_aton(address) not in own]
        for network in (*_PRIVATE, *(f"{address}/32" for address in others)):
            address, _, bits = network.partition("/")
            _add(netlink, socket.inet_aton(address), int(bits), _BLOCK)
    _give_up()


def _add(
    netlink: socket.socket, address: bytes, bits: int, action: int, port: int = 0, protocol: int = 0
) -> None:
    """A policy for packets to an address: `struct xfrm_userpolicy_info` as the kernel has it."""
    ports = struct.pack("!HHHH", port, 0xFFFF if port else 0, 0, 0)
    family = struct.pack("=HBBBxxxiI", socket.AF_INET, bits, 0, protocol, 0, 0)
    selector = address.ljust(16, b"\0") + bytes(16) + ports + family
    lifetime = struct.pack("=4Q", *(_FOREVER,) * 4) + bytes(32) + bytes(32)
    priority = 200 if action == _BLOCK else 100
    body = selector + lifetime + struct.pack("=IIBBBB", priority, 0, _OUT, action, 0, 0) + bytes(4)
    netlink.send(struct.pack("=IHHII", 16 + len(body), _NEW_POLICY, _REQUEST_AND_ACK, 1, 0) + body)
    (error,) = struct.unpack_from("=i", netlink.recv(4096), 16)
    if error:
        raise OSError(-error, f"cannot close off private addresses: {os.strerror(-error)}")


def own_addresses() -> list[bytes]:
    """The first IPv4 address of each interface here."""
    found: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s24x", name.encode())
            with contextlib.suppress(OSError):  # an interface without an address
                found.append(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24])
    return found


def _name_servers() -> list[bytes]:
    found: list[bytes] = []
    with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(OSError):  # not an IPv4 address
                    found.append(socket.inet_aton(words[1]))
    return found


def _give_up() -> None:
    """Drop the capabilities from every set of this process, and so of all that come from it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in _NUMBERS:
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "cannot give up a capability")
    header = struct.pack("=II", _CAP_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "cannot read the capabilities")
    keep = ~sum(1 << number for number in _NUMBERS) & 0xFFFFFFFF
    sets = list(struct.unpack("=6I", data.raw))
    sets[:3] = [value & keep for value in sets[:3]]
    if libc.capset(header, struct.pack("=6I", *sets)):
        raise OSError(ctypes.get_errno(), "cannot give up the capabilities")
