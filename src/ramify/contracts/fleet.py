"""Long-lived services that many rollouts share: a place of its own in them for each task.

What keeps tenants apart is the service's own access control, not goodwill: what a tenant is given
opens its own place and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """An account that one holder has to itself for a while.

    Attributes:
        account: its name.
        holder: who has it, e.g. a rollout's id.
        fence: grows with every lease of the broker; a service that remembers the highest can
            refuse whoever comes late.
        expires_at: wall-clock seconds; afterwards somebody else may have it.
        facts: what belongs to the account: user names, passwords, tenant ids.
    """

    account: str
    holder: str
    fence: int
    expires_at: float
    facts: dict[str, str] = {}


class TaskDatabase(Protocol):
    """Makes places of single tasks in one long-lived service, from a template.

    Guarantees: what `create` returns reads and writes the tenant's own place; nothing of another
    tenant, of the template or of the service can be read, listed by content, changed or locked out
    with it. Tenant names are `[a-z][a-z0-9_]*`, at most 40 characters.
    """

    async def create(self, tenant: str, source: str | None = None) -> Mapping[str, str]:
        """Make a tenant's place; one that is there already is made anew.

        Args:
            tenant: whose place it is.
            source: a tenant, suspended, whose place it begins as a copy of; None: the template.

        Returns: variables by which the tenant's programs find and open it (`PGHOST`, ...).

        Raises: EnvironmentFailed, ConfigError (a name that cannot be one), UnsupportedError.
        """
        ...

    async def suspend(self, tenant: str) -> None:
        """End a tenant's connections and let it in no more; its place stays as it is.

        Idempotent. Raises EnvironmentFailed, UnsupportedError (the service knows no users).
        """
        ...

    async def admit(self, tenant: str) -> None:
        """Let a suspended tenant in again, with what it was given. Raises EnvironmentFailed."""
        ...

    async def drop(self, tenant: str) -> None:
        """Remove a tenant's place and end its connections. Idempotent. Raises EnvironmentFailed."""
        ...

    async def tenants(self) -> list[str]:
        """The tenants that have a place. Raises EnvironmentFailed."""
        ...


class AccountBroker(Protocol):
    """Gives accounts to one holder at a time, and survives the death of any of them.

    Guarantees: at no time do two holders have the same account; a lease that is neither renewed
    nor released ends by itself; what was granted is on disk before it is returned.
    """

    async def lease(self, holder: str, seconds: float) -> Lease:
        """An account for `seconds`. Waits for one. Raises EnvironmentFailed when none gets free."""
        ...

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        """Keep an account for `seconds` from now. Raises EnvironmentFailed if the lease is over."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give an account back. Nothing happens where the lease is over already."""
        ...

    async def leases(self) -> list[Lease]:
        """The leases that hold now."""
        ...
