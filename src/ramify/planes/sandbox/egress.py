"""Which hosts and addresses a sandbox may reach."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import NetworkMode, NetworkPolicy

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From host and port to addresses, as text. Raises OSError."""

LookUp = Callable[[str, int], list[str]]
"""The same, blocking."""

_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_LOOKUPS = 4
_KEPT_SEC = 30.0
_MOST_KEPT = 256
_NAT64 = IPv6Network("64:ff9b::/96")
_DOCUMENTATION = "192.0.2.1"  # no machine has it


def parse_host(text: str) -> str | None:
    """A host name in lower case, or an address in its canonical form; None if it is neither."""
    text = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    try:
        return str(ip_address(text))
    except ValueError:
        name = text.lower().removesuffix(".")
        return name if len(name) <= 253 and _HOST.fullmatch(name) else None


def parse_authority(text: str, default_port: int | None) -> tuple[str, int | None] | None:
    """`host`, `host:port` or `[v6]:port` as (host, port); None if it is not one."""
    host, port = text, ""
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]{1,5})", text)
    if match:
        host, port = match[1], match[2]
    name = parse_host(host)
    number = int(port) if port else default_port
    if name is None or (number is not None and not 0 < number < 65536):
        return None
    return name, number


def is_public(address: Address) -> bool:
    """Whether an address is out on the Internet: not loopback, private, link-local (where cloud
    metadata lives), shared, multicast or reserved, nor an IPv6 form that leads to such a one.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """A NetworkPolicy, compiled: exact (host, port) pairs, hosts, and domains with subdomains."""

    mode: NetworkMode
    exact: frozenset[tuple[str, int]]
    hosts: frozenset[str]
    domains: tuple[str, ...]

    def allows(self, host: str, port: int) -> bool:
        """Whether the policy names this host, whatever its address."""
        if self.mode is NetworkMode.NONE:
            return False
        return (
            self.mode is NetworkMode.OPEN
            or (host, port) in self.exact
            or host in self.hosts
            or host.endswith(self.domains)
        )

    def trusts(self, host: str, port: int) -> bool:
        """Whether an entry names exactly host and port, so that its address may be private."""
        return self.mode is not NetworkMode.NONE and (host, port) in self.exact


def compile_rules(policy: NetworkPolicy) -> Rules:
    """Raises: ConfigError (an entry is not `host`, `*.domain` or `host:port`)."""
    exact: set[tuple[str, int]] = set()
    hosts: set[str] = set()
    domains: list[str] = []
    for entry in policy.allowed_hosts:
        wildcard = entry.startswith("*.")
        parsed = parse_authority(entry.removeprefix("*."), None)
        if parsed is None or (wildcard and parsed[1] is not None):
            raise ConfigError(
                f"{entry!r} is not a host; write `host`, `*.domain` or `host:port`",
                field="network.allowed_hosts",
            )
        host, port = parsed
        if wildcard:
            domains.append("." + host)
        elif port is None:
            hosts.add(host)
        else:
            exact.add((host, port))
    return Rules(policy.mode, frozenset(exact), frozenset(hosts), tuple(domains))


class MachineResolver:
    """Asks the machine's own resolver, in threads of its own.

    A lookup can take as long as a hostile name server likes; here it can hold up only the lookups
    of the same sandbox. Whoever asks for a name that is being looked up waits for that answer, and
    answers are kept for half a minute: a package manager opens a hundred connections to one host
    at once, and one slow lookup for each would leave the last without an answer in time. The
    threads end with the object.

    Args:
        look_up: the machine's own resolver; blocks, raises OSError.
    """

    def __init__(self, look_up: LookUp | None = None) -> None:
        self._look_up = look_up or _addresses
        self._threads = ThreadPoolExecutor(_LOOKUPS, "ramify-dns")
        self._asked: dict[tuple[str, int], asyncio.Future[list[str]]] = {}
        self._kept: dict[tuple[str, int], tuple[float, list[str]]] = {}

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a host, in order of preference. Raises: OSError."""
        loop = asyncio.get_running_loop()
        until, found = self._kept.get((host, port), (0.0, []))
        if loop.time() < until:
            return list(found)
        asked = self._asked.get((host, port))
        if asked is None:
            asked = loop.run_in_executor(self._threads, self._look_up, host, port)
            self._asked[host, port] = asked
            asked.add_done_callback(partial(self._answered, loop, (host, port)))
        # Who gives up waiting does not take the answer from the others.
        return list(await asyncio.shield(asked))

    def _answered(
        self,
        loop: asyncio.AbstractEventLoop,
        name: tuple[str, int],
        asked: asyncio.Future[list[str]],
    ) -> None:
        del self._asked[name]
        if asked.cancelled() or asked.exception() is not None:
            return  # a failure is for those who wait; the next one asks again
        self._kept.pop(name, None)
        self._kept[name] = (loop.time() + _KEPT_SEC, asked.result())
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def reachable(addresses: list[str]) -> list[str]:
    """Those addresses that are public and not this machine's own."""
    public = [text for text in addresses if is_public(ip_address(text.split("%", 1)[0]))]
    return [text for text in public if not _is_local(text)]


def _is_local(address: str) -> bool:
    """Whether an interface of this machine has the address: only then can a socket bind to it."""
    return _can_bind(address) and not _can_bind(_DOCUMENTATION)


def _can_bind(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
        return True
    except OSError:
        return False
