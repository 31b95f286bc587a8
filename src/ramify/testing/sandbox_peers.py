"""Small network programs for the inside of a sandbox, in Python or Perl, whichever is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ramify.contracts.process import Process
from ramify.contracts.sandbox import (
    Endpoint,
    ExecResult,
    Sandbox,
)
from ramify.testing.check import equal, require
from ramify.testing.sandbox_bench import need_program, sh

NOT_CONNECTED = 9
"""Exit code of the client where it could not connect."""

_CLIENT = {
    "python3": """
import socket, sys
try:
    peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(9)
peer.settimeout(15)
peer.sendall(sys.stdin.buffer.read())
if sys.argv[3] == "half":
    peer.shutdown(socket.SHUT_WR)
while data := peer.recv(65536):
    sys.stdout.buffer.write(data)
""",
    "perl": """
use IO::Socket::INET;
my $peer = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 2);
unless ($peer) { print STDERR "$@\\n"; exit 9; }
binmode STDIN; binmode STDOUT; binmode $peer;
{ local $/; my $data = <STDIN>; print $peer $data if defined $data; $peer->flush; }
shutdown($peer, 1) if $ARGV[2] eq "half";
while (sysread($peer, my $data, 65536)) { print STDOUT $data; }
""",
}
# The server answers each connection, once its peer has half-closed it, with what it was sent.
_SERVER = {
    "python3": """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
while True:
    peer, _ = listener.accept()
    parts = []
    while data := peer.recv(65536):
        parts.append(data)
    peer.sendall(sys.argv[2].encode() + b"".join(parts))
    peer.close()
""",
    "perl": """
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ARGV[0],
    Listen => 16, ReuseAddr => 1) or die "cannot listen: $@";
$| = 1; print "up\\n";
while (my $peer = $listener->accept) {
    binmode $peer; local $/; my $data = <$peer>;
    print $peer $ARGV[1], $data; close $peer;
}
""",
}


def _command(language: str, program: str) -> list[str]:
    return [language, "-c" if language == "python3" else "-e", program]


async def connect_inside(
    sandbox: Sandbox, port: int, data: bytes = b"", *, host: str = "127.0.0.1", half: bool = True
) -> ExecResult:
    """Connect from inside, send `data`, half-close if `half`, and print what comes back.

    The exit code is NOT_CONNECTED where nothing answers. Raises CheckSkipped without Python
    and Perl inside.
    """
    language = await need_program(sandbox, "python3", "perl")
    command = [*_command(language, _CLIENT[language]), host, str(port), "half" if half else "open"]
    return await sandbox.exec(command, stdin=data, timeout_sec=15)


@asynccontextmanager
async def server_inside(sandbox: Sandbox, port: int, greeting: str) -> AsyncGenerator[Process]:
    """A server on 127.0.0.1:`port` inside that answers `greeting` and what it was sent."""
    language = await need_program(sandbox, "python3", "perl")
    process = await sandbox.spawn([*_command(language, _SERVER[language]), str(port), greeting])
    try:
        if await process.read(2) != b"up":
            raise RuntimeError(f"no server inside: {(await process.read_err())!r}")
        yield process
    finally:
        await process.aclose()


async def ask(endpoint: Endpoint, data: bytes) -> bytes:
    """Connect from the host, send, half-close, and return everything that comes back."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with suppress(ConnectionError):  # the peer may be gone already
            await writer.wait_closed()


@dataclass(slots=True)
class HostServer:
    """A server of the test on the host: how often it was reached, and where it listens."""

    host: str
    port: int
    connections: int = 0


@asynccontextmanager
async def host_server(host: str = "127.0.0.1") -> AsyncGenerator[HostServer]:
    """An HTTP server on the host that answers every request with `from the host`."""
    served = HostServer(host, 0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n")
            writer.write(b"from the host")
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a peer that connects and leaves was counted, which is all that is asked
        finally:
            writer.close()

    server = await asyncio.start_server(answer, host, 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


async def through_proxy(sandbox: Sandbox, request: str) -> str:
    """The status line and body that the proxy named in the environment answers with."""
    proxy = await sh(sandbox, 'echo "${http_proxy:-$HTTP_PROXY}"')
    require(bool(proxy), "http_proxy must be set inside")
    host, _, port = proxy.rpartition("@")[2].rpartition("//")[2].rstrip("/").rpartition(":")
    result = await connect_inside(sandbox, int(port), request.encode(), host=host, half=False)
    equal(result.exit_code, 0, f"connecting to the proxy {proxy}")
    return result.stdout.decode("latin-1")


def get_request(authority: str) -> str:
    """A request for `/` of a host and port, as a proxy takes it."""
    return f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
