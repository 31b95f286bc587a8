"""State in a Redis server: every key with its value and remaining time, put back in one step."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from ramify.contracts.drivers import DriverWorld
from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.planes.environment.state.hands import Hands
from ramify.planes.environment.state.resp import Reply, ReplyError, RespClient
from ramify.planes.environment.state.sealed import seal, unseal

_ENTRIES = 100_000
_SHOWN = 400
_LOOPBACK = ("127.0.0.1", "localhost", "::1", None)
# A script runs alone: what it reads is of one moment, whoever writes meanwhile. ARGV[1] is the
# number of a database, or empty for all; ARGV[2] is what keys begin with.
_EACH = """
local out = {}
for db in string.gmatch(redis.call('INFO', 'keyspace'), 'db(%d+):') do
  if ARGV[1] == '' or ARGV[1] == db then
    redis.call('SELECT', db)
    for _, key in ipairs(redis.call('KEYS', ARGV[2] .. '*')) do
      local left = redis.call('PTTL', key)
"""
_DUMP = f"""{_EACH}
      out[#out + 1] = {{tonumber(db), key, left, redis.call('DUMP', key)}}
    end
  end
end
return out
"""
_VALUES = f"""{_EACH}
      local kind, value = redis.call('TYPE', key)['ok'], nil
      if kind == 'string' then value = redis.call('GET', key)
      elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
      elseif kind == 'set' then value = redis.call('SMEMBERS', key)
      elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
      elseif kind == 'hash' then value = redis.call('HGETALL', key)
      elseif kind == 'stream' then
        value = {{redis.call('XRANGE', key, '-', '+'), {{}}}}
        for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
          value[2][#value[2] + 1] = {{group[2], group[4], group[6], group[8]}}
        end
      else value = redis.call('DUMP', key) end
      out[#out + 1] = {{tonumber(db), key, left >= 0 and 1 or 0, kind, value}}
    end
  end
end
return out
"""

FORGET = """
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do redis.call('UNLINK', key) end
"""
"""A script that removes the keys that begin with its argument."""


class _Key(msgspec.Struct, frozen=True, array_like=True):
    """One key of a snapshot; `left` is what it had to live, in ms (-1: for ever)."""

    db: int
    key: bytes
    left: int
    payload: bytes


class _State(msgspec.Struct, frozen=True):
    keys: list[_Key]
    functions: bytes | None


class RedisDriver:
    """Implements `StateDriver` for a Redis server: all databases, or the one its `url` names.

    What is read is of one moment. `restore` replaces everything in one transaction: nobody ever
    sees half of it, and connections stay. A key goes on with the time to live that it had when the
    snapshot was taken. Functions are part of the state (where all databases are); configuration,
    ACL users, cached scripts and subscriptions are not. Every value is tried before anything is
    changed, so a snapshot that this server cannot load leaves it as it is.

    With `prefix` (letters, digits, `_` and `:`), and a database in `url`, it is about the keys that
    begin with it, and no others; digest and description do not say what they begin with.
    """

    def __init__(self, hands: Hands, url: str | None, world: DriverWorld, prefix: str = "") -> None:
        self._hands = hands
        self._prefix = prefix
        self._world = world
        parts = urlsplit(url or "redis://127.0.0.1:6379")
        number = parts.path.strip("/")
        if (
            parts.scheme != "redis"
            or parts.hostname not in _LOOPBACK
            or not number.isdigit() * bool(number) + (not number)
        ):
            raise ConfigError(
                f"{hands.name}: {parts.scheme}://{parts.hostname}:{parts.port}{parts.path} is not "
                "redis://127.0.0.1:PORT or redis://127.0.0.1:PORT/DATABASE",
                field="environment.state.url",
            )
        self._port = parts.port or 6379
        self._db = number
        self._user, self._password = parts.username, parts.password

    @property
    def name(self) -> str:
        """See `StateDriver`."""
        return self._hands.name

    async def snapshot(self, place: Path) -> None:
        """See `StateDriver`. Raises UnsupportedError for a cluster."""
        async with self._connected() as redis:
            told = await redis.call("INFO", "cluster")
            if isinstance(told, bytes) and b"cluster_enabled:1" in told:
                raise UnsupportedError(f"{self.name}: a Redis cluster is more than one server")
            keys = [
                _key(entry) for entry in _list(await redis.call("EVAL", _DUMP, 0, *self._which))
            ]
            functions = None if self._db else await self._functions(redis)
        keys.sort(key=lambda key: (key.db, key.key))
        data = await asyncio.to_thread(msgspec.msgpack.encode, _State(keys, functions))
        await asyncio.to_thread((place / "keys").write_bytes, data)
        await seal(place, "redis", self.name, len(keys))

    async def restore(self, place: Path) -> None:
        """See `StateDriver`."""
        await unseal(place, "redis", self.name, int)
        data = await asyncio.to_thread((place / "keys").read_bytes)
        state = await asyncio.to_thread(msgspec.msgpack.decode, data, type=_State)
        async with self._connected() as redis:
            await self._try(redis, state.keys)
            commands: list[tuple[bytes | str | int, ...]] = [("MULTI",)]
            if self._prefix:
                commands += [("SELECT", self._db), ("EVAL", FORGET, 0, self._prefix)]
            else:
                commands += [("SELECT", self._db), ("FLUSHDB",)] if self._db else [("FLUSHALL",)]
            if state.functions is not None:
                commands.append(("FUNCTION", "RESTORE", state.functions, "FLUSH"))
            at = None
            for key in state.keys:
                if key.db != at:
                    commands.append(("SELECT", key.db))
                    at = key.db
                commands.append(("RESTORE", key.key, _left(key), key.payload))
            await self._commit(redis, commands, "put the keys back")

    async def digest(self) -> str:
        """See `StateDriver`. Over values, not how the server holds them; not times to live."""
        entries = sorted(_encode(entry) for entry in await self._values())
        total = hashlib.sha256(b"".join(hashlib.sha256(entry).digest() for entry in entries))
        if not self._db:
            async with self._connected() as redis:
                total.update(await self._functions(redis) or b"")
        return total.hexdigest()

    async def describe(self) -> dict[str, dict[str, str]]:
        """See `StateDriver`. One part for each database: key → type and value."""
        values = await self._values()
        if len(values) > _ENTRIES:
            return {self.name: {"digest": await self.digest()}}
        found: dict[str, dict[str, str]] = {}
        for db, key, lives, kind, value in map(_list, values):
            part = found.setdefault(f"{self.name} db{db}", {})
            timed = " with a time to live" if lives == 1 else ""
            part[_text(key)] = f"{_text(kind)}{timed}: {_shown(value)}"
        return found or {self.name: {}}

    async def mutate(self) -> str:
        """Set a new key."""
        key = f"{self._prefix}ramify-check-{secrets.token_hex(4)}"
        async with self._connected() as redis:
            await redis.call("SET", key, "1")
        return f"a new key {key}"

    async def _values(self) -> list[Reply]:
        async with self._connected() as redis:
            found = _list(await redis.call("EVAL", _VALUES, 0, *self._which))
        return [_ordered(_list(entry), len(self._prefix)) for entry in found]

    @property
    def _which(self) -> tuple[str, str]:
        """What the scripts are told to look at."""
        return self._db, self._prefix

    async def _functions(self, redis: RespClient) -> bytes | None:
        try:
            found = await redis.call("FUNCTION", "DUMP")
        except ReplyError:
            return None  # a server before 7.0 has none
        return found if isinstance(found, bytes) else None

    async def _try(self, redis: RespClient, keys: Sequence[_Key]) -> None:
        """Load every value under a name that nobody sees, and take it away again."""
        scratch = f"ramify-{secrets.token_hex(16)}"
        commands: list[tuple[bytes | str | int, ...]] = [("MULTI",)]
        for key in keys:
            commands += [("RESTORE", scratch, 0, key.payload), ("DEL", scratch)]
        await self._commit(redis, commands, "load the snapshot (nothing was changed)")

    async def _commit(
        self, redis: RespClient, commands: list[tuple[bytes | str | int, ...]], doing: str
    ) -> None:
        replies = await redis.pipeline([*commands, ("EXEC",)])
        results = replies[-1]
        failures = [reply for reply in replies if isinstance(reply, ReplyError)]
        if isinstance(results, list):
            failures += [reply for reply in results if isinstance(reply, ReplyError)]
        if failures or not isinstance(results, list):
            raise self._hands.failed(f"cannot {doing}: {failures[0] if failures else results}")

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[RespClient]:
        try:
            endpoint = await self._world.endpoint(self._port)
            async with asyncio.timeout(self._hands.timeout_sec), RespClient(endpoint) as redis:
                if self._password is not None:
                    user = [unquote(self._user)] if self._user else []
                    await redis.call("AUTH", *user, unquote(self._password))
                if self._db:
                    await redis.call("SELECT", self._db)
                yield redis
        except OSError as error:  # TimeoutError is one
            why = str(error) or type(error).__name__
            raise self._hands.failed(f"no answer of Redis at port {self._port}: {why}") from error
        except ReplyError as error:
            raise self._hands.failed(f"Redis refuses: {error}") from error


def _list(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise ConnectionError(f"an unexpected answer: {reply!r:.100}")
    return reply


def _key(reply: Reply) -> _Key:
    db, key, left, payload = _list(reply)
    if not (isinstance(db, int) and isinstance(key, bytes) and isinstance(left, int)):
        raise ConnectionError("an unexpected answer to the dump of a key")
    if not isinstance(payload, bytes):
        raise ConnectionError(f"the key {key!r:.100} cannot be dumped")
    return _Key(db, key, left, payload)


def _left(key: _Key) -> int:
    """RESTORE takes 0 for a key that lives for ever."""
    return 0 if key.left < 0 else max(1, key.left)


def _ordered(entry: list[Reply], skip: int) -> list[Reply]:
    """Members of sets and fields of hashes have no order of their own; keys lose `skip` bytes."""
    db, key, lives, kind, value = entry
    key = key[skip:] if isinstance(key, bytes) else key
    if kind == b"set":
        value = list[Reply](sorted(_list(value), key=_encode))
    elif kind == b"hash":
        flat = _list(value)
        pairs = sorted(zip(flat[0::2], flat[1::2], strict=True), key=lambda pair: _encode(pair[0]))
        value = list[Reply](list[Reply](pair) for pair in pairs)
    return [db, key, lives, kind, value]


def _encode(reply: Reply) -> bytes:
    """A reply, so that no two different ones are alike."""
    if isinstance(reply, list):
        return b"*%d:" % len(reply) + b"".join(map(_encode, reply))
    if isinstance(reply, bytes):
        return b"$%d:" % len(reply) + reply
    return repr(reply).encode()


def _text(reply: Reply) -> str:
    return reply.decode("utf-8", "backslashreplace") if isinstance(reply, bytes) else str(reply)


def _shown(value: Reply) -> str:
    text = json.dumps(_plain(value), ensure_ascii=False)
    if len(text) <= _SHOWN and b"\xef\xbf\xbd" not in _encode(value):
        return text
    return f"{text[:_SHOWN]} sha256:{hashlib.sha256(_encode(value)).hexdigest()[:32]}"


def _plain(value: Reply) -> object:
    return [_plain(item) for item in value] if isinstance(value, list) else _text(value)
