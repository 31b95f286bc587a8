"""State that the world itself can write down: shell lines, or paths of a service."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import aiohttp
import msgspec

from ramify.contracts.drivers import DriverWorld, StateDriver
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import MIB
from ramify.contracts.scratch import Scratch
from ramify.planes.environment.records import StateSpec
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.sealed import seal, unseal

_LARGEST_BODY = 2048 * MIB
_LARGEST_TEXT = 64 * MIB
_ENTRIES = 10_000
_SHOWN = 2_000


class CommandDriver:
    """Implements `StateDriver` with shell lines of the manifest.

    `snapshot` writes to the directory `$RAMIFY_STATE_DIR`, which is then kept on the host;
    `restore` finds it there again. The digest is that of what `snapshot` writes (which then has to
    write the same for equal state), unless the manifest names a `digest` line.
    """

    def __init__(self, hands: Hands, spec: StateSpec) -> None:
        self._hands = hands
        self._snapshot, self._restore = _pair(hands, spec)

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`."""
        await self._write_down(place / "state")
        await seal(place, "command", self.name, None)

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        await unseal(place, "command", self.name, type(None))
        async with self._hands.place() as work:
            await self._hands.give(place / "state", work)
            await self._hands.run(self._restore, "restore", env={"RAMIFY_STATE_DIR": work})

    async def digest(self) -> str:
        """See `StateDriver`."""
        told = json.dumps(sorted((await self._files()).items()))
        return hashlib.sha256(told.encode()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. The files that `snapshot` writes: path → size and digest."""
        return {self.name: await self._files()}

    async def mutate(self) -> str:
        """Always raises UnsupportedError: only the manifest's author knows how."""
        raise _no_mutate(self.name)

    async def _write_down(self, folder: Path) -> None:
        async with self._hands.place() as work:
            await self._hands.run(self._snapshot, "snapshot", env={"RAMIFY_STATE_DIR": work})
            await self._hands.take(work, folder)

    async def _files(self) -> dict[str, str]:
        async with Scratch() as folder:
            await self._write_down(folder / "state")
            return await asyncio.to_thread(_walk, folder / "state")


class HttpDriver:
    """Implements `StateDriver` with paths of a service.

    The answer to a POST of `snapshot` is kept; it is the body of a POST to `restore`. The digest
    is that of the answer to a GET of `digest`, else of what `snapshot` answers.
    """

    def __init__(self, hands: Hands, spec: StateSpec, world: DriverWorld) -> None:
        self._hands = hands
        self._world = world
        self._snapshot, self._restore = _pair(hands, spec)
        self._digest, self._mutate = spec.digest, spec.mutate
        if spec.service is None:
            raise ConfigError(
                f"{hands.name}: name the service that is asked", field="environment.state.service"
            )
        self._service = spec.service

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`."""
        await self._ask("POST", self._snapshot, into=place / "body")
        await seal(place, "http", self.name, None)

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        await unseal(place, "http", self.name, type(None))
        await self._ask("POST", self._restore, body=place / "body")

    async def digest(self) -> str:
        """See `StateDriver`."""
        return hashlib.sha256(await self._state()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. The members of a JSON object, else a digest."""
        body = await self._state()
        known = {"digest": hashlib.sha256(body).hexdigest()}
        try:
            members = msgspec.json.decode(body, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {self.name: known}
        if len(members) > _ENTRIES:
            return {self.name: known}
        return {self.name: {key: _short(value) for key, value in members.items()}}

    async def mutate(self) -> str:
        """POST the `mutate` path of the manifest. Raises UnsupportedError without one."""
        if self._mutate is None:
            raise _no_mutate(self.name)
        await self._ask("POST", self._mutate)
        return f"POST {self._mutate}"

    async def _state(self) -> bytes:
        if self._digest is not None:
            return await self._ask("GET", self._digest)
        return await self._ask("POST", self._snapshot)

    async def _ask(
        self, method: str, path: str, *, body: Path | None = None, into: Path | None = None
    ) -> bytes:
        """Ask the service; the answer goes to the file `into`, else it is returned."""
        base = await self._world.base_url(self._service)
        url = f"{base}/{path.lstrip('/')}"
        timeout = aiohttp.ClientTimeout(total=self._hands.timeout_sec)
        data = None if body is None else await asyncio.to_thread(body.open, "rb")
        try:
            async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
                async with session.request(method, url, data=data, allow_redirects=False) as answer:
                    if not 200 <= answer.status < 300:
                        said = (await answer.content.read(500)).decode(errors="replace")
                        raise self._hands.failed(f"{method} {path}: {answer.status} {said}")
                    return await self._receive(answer, into)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise self._hands.failed(f"{method} {path}: {why}") from error
        finally:
            if data is not None:
                data.close()

    async def _receive(self, answer: aiohttp.ClientResponse, into: Path | None) -> bytes:
        kept = bytearray()
        size = 0
        file = None if into is None else await asyncio.to_thread(into.open, "wb")
        try:
            async for chunk in answer.content.iter_chunked(MIB):
                size += len(chunk)
                if size > (_LARGEST_TEXT if file is None else _LARGEST_BODY):
                    raise self._hands.failed(f"the answer is longer than {size} bytes")
                if file is None:
                    kept += chunk
                else:
                    await asyncio.to_thread(file.write, chunk)
        finally:
            if file is not None:
                file.close()
        return bytes(kept)


class Declared:
    """A driver whose digest, or whose mutation, the manifest gives as a shell line."""

    def __init__(self, inner: StateDriver, hands: Hands, digest: str | None, mutate: str | None):
        self._inner = inner
        self._hands = hands
        self._digest, self._mutate = digest, mutate

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._inner.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`."""
        await self._inner.snapshot(place)

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        await self._inner.restore(place)

    async def digest(self) -> str:
        """See `StateDriver`. That of what the declared line prints."""
        if self._digest is None:
            return await self._inner.digest()
        told = await self._hands.run(self._digest, "ask for the digest")
        return hashlib.sha256(told.strip()).hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`."""
        return await self._inner.describe()

    async def mutate(self) -> str:
        """Run the declared line."""
        if self._mutate is None:
            return await self._inner.mutate()
        await self._hands.run(self._mutate, "change the state")
        return self._mutate


def _pair(hands: Hands, spec: StateSpec) -> tuple[str, str]:
    if spec.snapshot is None or spec.restore is None:
        raise ConfigError(
            f"{hands.name}: a state of kind {spec.kind!r} needs `snapshot` and `restore`",
            field="environment.state",
        )
    return spec.snapshot, spec.restore


def _no_mutate(name: str) -> UnsupportedError:
    return UnsupportedError(f"{name}: how it is changed has to be declared (`mutate`)")


def _walk(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode()
            found[name] = f"{path.stat().st_size} sha256:{digest}"
    return found


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    if len(text) <= _SHOWN:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{text[:_SHOWN]}... sha256:{digest}"
