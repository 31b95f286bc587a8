"""How a task's sandbox comes to its own place in a fleet, and leaves it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ramify.contracts.cleanup import uninterrupted
from ramify.contracts.errors import SandboxLostError, UnsupportedError
from ramify.contracts.fleet import AccountBroker, Lease, TaskDatabase
from ramify.contracts.sandbox import Endpoint, Sandbox
from ramify.contracts.streams import ByteReader, ByteWriter, Listener

_CHUNK = 64 * 1024


@dataclass(slots=True)
class Member:
    """A task in a fleet: what it holds, and the variables by which its programs find the places."""

    lease: Lease
    variables: dict[str, str]
    listeners: list[Listener] = field(default_factory=list[Listener])

    @property
    def tenant(self) -> str:
        """Its name in the databases."""
        return _tenant(self.lease.account)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Long-lived services in a sandbox of their own, and who may use them.

    Attributes:
        sandbox: where they run, started and healthy.
        databases: where each task gets a place.
        broker: gives out the accounts that tenants are called after.
        ports: ports of the services, reached at the same port of 127.0.0.1 in a task's sandbox.
    """

    sandbox: Sandbox
    databases: Sequence[TaskDatabase]
    broker: AccountBroker
    ports: Sequence[int]

    async def join(
        self, sandbox: Sandbox, holder: str, seconds: float, source: Member | None = None
    ) -> Member:
        """Give a task an account and places of its own for `seconds`, and ways to the services.

        The places begin as the templates, or as copies of those of `source`, which is suspended.

        Raises: EnvironmentFailed (no account is free, a service is dead), SandboxError (a port is
        taken in the task's sandbox), UnsupportedError (a place cannot be copied). Then nothing is
        held.
        """
        lease = await self.broker.lease(holder, seconds)
        member = Member(lease, dict(lease.facts))
        try:
            for database in self.databases:
                begun = source.tenant if source is not None else None
                member.variables |= await database.create(member.tenant, begun)
            await self._connect(member, sandbox)
        except BaseException:
            await uninterrupted(self.leave(member))
            raise
        return member

    async def suspend(self, member: Member, sandbox: Sandbox) -> None:
        """End a task's connections and let it in no more, so that its places stay as they are.

        Raises: UnsupportedError (a place does not allow it; nothing was changed, but open
        connections end), EnvironmentFailed.
        """
        await _disconnect(member)
        done: list[TaskDatabase] = []
        try:
            for database in self.databases:
                await database.suspend(member.tenant)
                done.append(database)
        except UnsupportedError:
            for database in done:
                await database.admit(member.tenant)
            await self._connect(member, sandbox)
            raise

    async def admit(self, member: Member, sandbox: Sandbox) -> None:
        """Undo `suspend`. Raises: EnvironmentFailed, SandboxError."""
        for database in self.databases:
            await database.admit(member.tenant)
        await self._connect(member, sandbox)

    async def leave(self, member: Member) -> None:
        """Close the ways, drop the places, give the account back: in this order. Idempotent.

        Raises: EnvironmentFailed (a place could not be dropped: the account stays taken until its
        lease expires, and `sweep` drops it).
        """
        await _disconnect(member)
        held = {lease.fence for lease in await self.broker.leases()}
        if member.lease.fence not in held:
            return  # expired: the place may be somebody else's by now
        for database in self.databases:
            await database.drop(member.tenant)
        await self.broker.release(member.lease)

    async def take_over(self) -> int:
        """End all leases and drop all places; returns how many leases there were.

        For the engine that alone uses this fleet, before anybody joins it: whoever holds a lease
        then died with an engine before. Raises EnvironmentFailed.
        """
        left = await self.broker.leases()
        for lease in left:
            await self.broker.release(lease)
        await self.sweep()
        return len(left)

    async def _connect(self, member: Member, sandbox: Sandbox) -> None:
        for port in self.ports:
            endpoint = await self.sandbox.expose_port(port)
            member.listeners.append(await sandbox.serve_in(port, _Bridge(endpoint)))

    async def abandon(self, member: Member) -> None:
        """Leave a fleet that is broken: its places end with its sandbox. Idempotent."""
        await _disconnect(member)
        await self.broker.release(member.lease)

    async def sweep(self) -> int:
        """Drop places whose lease is over; returns how many. Raises EnvironmentFailed."""
        count = 0
        for database in self.databases:
            for tenant in await database.tenants():
                held = {_tenant(lease.account) for lease in await self.broker.leases()}
                if tenant not in held:
                    await database.drop(tenant)
                    count += 1
        return count


async def _disconnect(member: Member) -> None:
    while member.listeners:
        try:
            await member.listeners.pop().aclose()
        except SandboxLostError:
            continue  # it went with the task's sandbox


@dataclass(frozen=True, slots=True)
class _Bridge:
    """Carries the bytes of one connection of a task to a service, and back."""

    endpoint: Endpoint

    async def __call__(self, reader: ByteReader, writer: ByteWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self.endpoint.host, self.endpoint.port)
        except OSError:
            writer.close()  # as a dead service does
            return
        ways = [
            asyncio.create_task(_carry(reader, back)),
            asyncio.create_task(_carry(there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            back.close()  # before anything that can be cancelled
            writer.close()
            await asyncio.wait(ways)


async def _carry(reader: ByteReader, writer: ByteWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        return  # either end hung up: so does the other


def _tenant(account: str) -> str:
    """An account's name as a tenant's, the same for no two accounts that are names already."""
    plain = re.sub(r"[^a-z0-9_]", "_", account.lower())[:40]
    return plain if plain[:1].isalpha() else f"t{plain}"[:40]
