"""What of the table `[verifier]` goes with what: checks that concern more than one key."""

from __future__ import annotations

from collections.abc import Iterable

from ramify.contracts.errors import ConfigError
from ramify.planes.environment.records import VerifierSpec

_EVERY_KIND = frozenset({"kind", "hidden_from_agent"})
_OWN = {
    "script": frozenset[str](),
    "rubric": frozenset({"rubric"}),
    "agent": frozenset({"agent", "instruction", "verdict"}),
    "pipeline": frozenset[str](),
}
"""Kind of verifier → keys that mean something to it, besides those of every kind."""


def check_verifier(verifier: VerifierSpec, given: Iterable[str], file: str) -> None:
    """Check the keys of a table `[verifier]`; `given` are those that the file has.

    Raises: ConfigError (a key that the kind has no use for, one that it needs, a malformed name).
    """
    kind = verifier.kind
    for key in sorted(set(given) - _EVERY_KIND - _OWN[kind]):
        raise ConfigError(f'has no meaning for kind = "{kind}"', file, f"verifier.{key}")
    if verifier.rubric is None:
        if kind == "rubric":
            raise ConfigError('is required for kind = "rubric"', file, "verifier.rubric")
        return
    place, _, name = verifier.rubric.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(
            f"{verifier.rubric!r} is no rubric; write file.py:name or package.module:name",
            file,
            "verifier.rubric",
        )
