"""Live checkpoints: what runs in a sandbox runs on in each of its copies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio
from live_parts import LIVE, ask, attached, captured, children, lines, live_provider, python

from ramify.contracts.errors import SandboxLostError
from ramify.contracts.process import PtySize
from ramify.contracts.streams import ByteReader, ByteWriter
from ramify.planes.sandbox.local import LocalProvider

pytestmark = [pytest.mark.namespaces, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(namespaces_problem: str | None) -> AsyncIterator[LocalProvider | None]:
    async for provider in live_provider(namespaces_problem):
        yield provider


STREAM = """
import http.client, http.server, os, sys, threading, time
nonce = os.urandom(16).hex()
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
        for n in range(10):
            self.wfile.write(b"part %d\\n" % n); self.wfile.flush()
            if n == 4:
                go.wait()
go = threading.Event()
server = http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
reply = http.client.HTTPConnection("127.0.0.1", 8099)
reply.request("GET", "/")
stream = reply.getresponse()
first = [stream.readline() for _ in range(5)]
print(nonce, len(first), flush=True)
sys.stdin.readline()
go.set()
print(nonce, (b"".join(first) + stream.read()).decode().replace("\\n", ","), flush=True)
"""


async def test_a_nonce_in_memory_and_a_half_read_stream(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(STREAM))
    nonce, count = (await lines(process))[0].split()
    assert count == "5"
    image = await captured(sandbox)
    whole = ",".join(f"part {n}" for n in range(10)) + ","
    async with children(provider, image, 4) as copies:
        for copy in copies:
            assert await ask(attached(copy, process), "go") == f"{nonce} {whole}"
            assert await attached(copy, process).wait() == 0
    await provider.discard(image)


async def test_the_parent_is_spent(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(["cat"])
    running = asyncio.ensure_future(sandbox.exec("echo begun; sleep 100"))
    await asyncio.sleep(0.3)
    image = await captured(sandbox)
    with pytest.raises(SandboxLostError):
        await running
    with pytest.raises(SandboxLostError):
        await process.wait()
    with pytest.raises(SandboxLostError):
        await sandbox.exec("true")
    await sandbox.teardown()
    async with children(provider, image, 1) as (copy,):
        assert (await copy.exec("pgrep -x sleep | wc -l")).stdout == b"1\n"
        with pytest.raises(LookupError):
            copy.attach(999)  # type: ignore[attr-defined]
    await provider.discard(image)


async def test_a_shell_on_a_terminal_keeps_its_variables(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    shell = await sandbox.spawn(
        ["/bin/bash", "--norc"], env={"PS1": "$ ", "TERM": "dumb"}, pty=PtySize(30, 90)
    )
    await shell.write(b"stty -echo; kept=$RANDOM; echo i''s:$kept\n")
    seen = b""
    while b"is:" not in seen or not seen.endswith(b"$ "):
        seen += await shell.read()
    value = seen.rpartition(b"is:")[2].split()[0]
    image = await captured(sandbox)
    async with children(provider, image, 4) as copies:
        for number, copy in enumerate(copies):
            shell_copy = attached(copy, shell)
            await shell_copy.resize(PtySize(20 + number, 70))
            await shell_copy.write(b"echo $kept; stty size; tty\n")
            said = b""
            while b"/dev/pts" not in said:
                said += await shell_copy.read()
            assert said.split()[:4] == [value, b"%d" % (20 + number), b"70", b"/dev/pts/0"]
            await shell_copy.write(b"exit 3\n")
            assert await shell_copy.wait() == 3
    await provider.discard(image)


async def test_bytes_in_pipes_arrive_exactly_once(provider: LocalProvider) -> None:
    code = """
import os, sys, time
os.write(1, b"first\\n")
sys.stdin.readline()
os.write(1, b"x" * 30000 + b"\\n")
time.sleep(1)
while (line := sys.stdin.readline()):
    print(len(line), flush=True)
"""
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(code))
    assert (await lines(process))[0] == "first"
    await process.write(b"\n")
    await asyncio.sleep(0.3)
    await process.write(b"y" * 20000 + b"\n" + b"z" * 20000 + b"\n")
    image = await captured(sandbox)
    async with children(provider, image, 3) as copies:
        for copy in copies:
            mine = attached(copy, process)
            assert await lines(mine, 3) == ["x" * 30000, "20001", "20001"]
            await mine.close_stdin()
            assert await mine.read() == b""
            assert await mine.wait() == 0
    await provider.discard(image)


async def test_what_ran_in_the_background_of_a_command(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    put = "echo $i > /var/tmp/next; mv /var/tmp/next /var/tmp/ticks"
    loop = f"i=0; while :; do i=$((i+1)); {put}; echo noise; sleep 0.05; done"
    await sandbox.exec(f"({loop}) & echo started")
    image = await captured(sandbox)
    async with children(provider, image, 2) as copies:
        for copy in copies:
            first = (await copy.exec("cat /var/tmp/ticks")).stdout
            await asyncio.sleep(0.5)
            assert int((await copy.exec("cat /var/tmp/ticks")).stdout) > int(first or b"0")
    await provider.discard(image)


TREE = """
import fcntl, os, socket, sys, threading, multiprocessing.shared_memory as shm
lock = open("/var/tmp/lock", "w"); fcntl.lockf(lock, fcntl.LOCK_EX)
memory = shm.SharedMemory("kept", create=True, size=100); memory.buf[:4] = b"seen"
a, b = socket.socketpair()
told = {}
def work(name):
    told[name] = a.recv(100).decode()
thread = threading.Thread(target=work, args=("thread",)); thread.start()
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    b.send(("from " + os.read(r, 100).decode()).encode())
    os._exit(7)
print("ready", flush=True)
sys.stdin.readline()
os.write(w, b"child")
thread.join()
print(told["thread"], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
      bytes(memory.buf[:4]).decode(), flush=True)
sys.stdin.readline()
"""
TRY_LOCK = """
import fcntl
try:
    fcntl.lockf(open("/var/tmp/lock", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB); print("free")
except OSError:
    print("held", open("/dev/shm/kept", "rb").read(4).decode())
"""


async def test_threads_children_locks_and_shared_memory(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(TREE))
    assert await lines(process) == ["ready"]
    before = (await sandbox.exec("ps -eo pid,args | grep -v ps | sed 1,2d")).stdout
    image = await captured(sandbox)
    async with children(provider, image, 2) as copies:
        for copy in copies:
            after = (await copy.exec("ps -eo pid,args | grep -v ps | sed 1,2d")).stdout
            rest = [row for row in before.split(b"\n") if b"python" in row]
            assert rest == [row for row in after.split(b"\n") if b"python" in row]
            assert await ask(attached(copy, process), "") == "from child 7 seen"
            assert (await copy.exec(python(TRY_LOCK))).stdout == b"held seen\n"
    await provider.discard(image)


CUT = """
import os, sys
f = os.open("/var/tmp/count", os.O_RDWR | os.O_CREAT)
n = 0
while True:
    n += 1
    os.pwrite(f, b"%d\\n" % n, 0)
    os.write(1, b"%d\\n" % n)
"""


async def test_files_and_processes_are_one_cut(provider: LocalProvider) -> None:
    """The last number that the writer said before the cut is at most one behind the file's."""
    sandbox = await provider.create(LIVE)
    process = await sandbox.spawn(python(CUT))
    await lines(process, 1000)
    image = await captured(sandbox)
    files = await provider.create(LIVE, msgspec.structs.replace(image, live=False))
    in_file = int((await files.exec("cat /var/tmp/count")).stdout)
    assert (await files.exec("pgrep -f '[p]write' | wc -l")).stdout == b"0\n"
    await files.teardown()
    async with children(provider, image, 2) as copies:
        for copy in copies:
            said = await lines(attached(copy, process), 3000)
            at = next((n for n, line in enumerate(said) if line == str(in_file)), None)
            numbers = [int(line) for line in said[1:]]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert at is not None
    await provider.discard(image)


@pytest.mark.parametrize("program", [["/bin/sh"], ["/bin/bash", "--norc"]])
async def test_a_terminal_through_four_generations(
    provider: LocalProvider, program: list[str]
) -> None:
    """Some shells open /dev/tty, whose owner is not one of the sandbox."""
    sandbox = await provider.create(LIVE)
    env = {"PS1": "", "TERM": "dumb"}
    shell = await sandbox.spawn(program, env=env, pty=PtySize())
    await shell.write(b"stty -echo; count=0; sleep 100 & echo rea''dy\n")
    seen = b""
    while b"ready" not in seen:
        seen += await shell.read()
    for generation in range(1, 5):
        image = await captured(sandbox)
        sandbox = await provider.create(LIVE, image)
        shell = attached(sandbox, shell)
        await shell.write(b"count=$((count+1)); kill -0 $! && echo it:$count:\n")
        seen = b""
        while not seen.endswith(b":\r\n"):
            seen += await shell.read()
        assert seen.split()[-1] == b"it:%d:" % generation
        await provider.discard(image)
    await sandbox.teardown()


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open("/var/tmp/daemon", "w") as file:
            while True:
                file.write("."); file.flush(); time.sleep(0.02)
    os._exit(0)
"""


async def test_a_daemon_whose_session_leader_has_ended(provider: LocalProvider) -> None:
    sandbox = await provider.create(LIVE)
    await sandbox.exec(python(DAEMON))
    image = await captured(sandbox)
    async with children(provider, image, 2) as copies:
        for copy in copies:
            before = (await copy.exec("stat -c %s /var/tmp/daemon")).stdout
            await asyncio.sleep(0.3)
            assert int((await copy.exec("stat -c %s /var/tmp/daemon")).stdout) > int(before)
    await provider.discard(image)


HALF = """
import socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(s.recv(100).decode(), flush=True)
try:
    print("more", s.recv(100), flush=True)
except OSError as error:
    print("ended", flush=True)
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(s.recv(100).decode(), flush=True)
"""


async def test_connections_to_us_end_in_copies(provider: LocalProvider) -> None:
    async def greet(reader: ByteReader, writer: ByteWriter) -> None:
        writer.write(b"hello")
        await reader.read()

    sandbox = await provider.create(LIVE)
    listener = await sandbox.serve_in(0, greet)
    process = await sandbox.spawn(python(HALF, str(listener.port)))
    assert await lines(process) == ["hello"]
    image = await captured(sandbox)
    async with children(provider, image, 2) as copies:
        for copy in copies:
            assert (await lines(attached(copy, process)))[0] == "ended"
    await provider.discard(image)
