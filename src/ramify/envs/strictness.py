"""How strictly a task is verified in a run: what was asked for, and what was found to hold."""

from __future__ import annotations

from ramify import compose
from ramify.contracts.errors import UnsupportedError
from ramify.contracts.sandbox import SandboxProvider
from ramify.contracts.task import Hardening, IsolationLevel, ScriptProfile, Task
from ramify.envs.options import RunOptions


def isolation_of(task: Task, provider: SandboxProvider, options: RunOptions) -> IsolationLevel:
    """The caller's level, else the task's, else what was found, else `filesystem`.

    What was found with another provider counts: it is about what the tests look at.

    The services of a Compose project live on beside a frozen file system, as they are part of what
    the tests may ask; at stricter levels they are fresh. A separate verifier is the level
    `outputs`. Where nothing can be frozen (`bare`), a level nobody asked for by name becomes
    `live`, as it is for a task in a world, whose services the tests ask; the record of each reward
    says so.
    """
    package = task.package
    if package is None:
        return IsolationLevel.LIVE
    if package.verifier.separate:
        return IsolationLevel.OUTPUTS
    freezes = provider.capabilities().snapshot != "none"
    if options.isolation is not None:
        if options.isolation is IsolationLevel.FILESYSTEM and not freezes:
            raise UnsupportedError(
                "this sandbox cannot freeze a file system, so it cannot verify at level "
                "`filesystem`; choose another --isolation or another --sandbox"
            )
        return options.isolation
    found = compose.remembered(package.digest, provider.name)
    level = package.verifier.isolation or (found.level if found else None)
    alive = package.world is not None
    level = level or (IsolationLevel.LIVE if alive else IsolationLevel.FILESYSTEM)
    if options.shares_at_most is not None:
        level = min(level, options.shares_at_most, key=list(IsolationLevel).index)
    return level if freezes or level is not IsolationLevel.FILESYSTEM else IsolationLevel.LIVE


def profile_of(
    task: Task, level: IsolationLevel, provider: str, options: RunOptions
) -> ScriptProfile:
    """The caller's, else what was found at this level with this provider, whose images may hold
    other tools than another's; a stricter one could break honest work."""
    if options.hardening is not None:
        why = "" if options.hardening is Hardening.ISOLATED else "asked for"
        return ScriptProfile(options.hardening, why)
    found = compose.remembered(task.package.digest, provider) if task.package else None
    if found is None:
        return ScriptProfile()
    if not found.holds_for(provider):
        why = f"checked on `{found.provider}`, not on `{provider}`: run `ramify tasks check`"
        return ScriptProfile(why=why)
    if found.level is not level:
        return ScriptProfile(why=f"not checked at level {level.value}")
    if found.hardening is Hardening.ISOLATED:
        return ScriptProfile(found.hardening, "")
    return ScriptProfile(why="`ramify tasks check` found no stricter one")


def is_checked(task: Task, provider: str) -> bool:
    """Whether `ramify tasks check` found how far the task's script is hardened there."""
    found = compose.remembered(task.package.digest, provider) if task.package else None
    return found is not None and found.holds_for(provider)
