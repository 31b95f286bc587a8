"""Keeping secrets out of what is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Any, TypeVar, cast

import msgspec

from ramify.contracts.plain import DEEPEST, TOO_DEEP, shown

T = TypeVar("T")

_MASK = "[redacted]"
_SHORTEST = 6

_OURS = frozenset(
    {
        "rollout_id", "job_id", "task_id", "config_hash", "trajectory_hash", "agent", "model",
        "sandbox", "role", "space", "granularity", "unit", "phase", "code", "snapshot", "digest",
        "place",
    }
)  # fmt: skip
"""Fields of records that name things of ours, or hold one of a few words: what they say is known
anyway, and a record in which they were replaced would belong to nothing (a password may well be
`postgres`)."""

_SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_\d+)?$", re.IGNORECASE
)

_WORD = r"[A-Za-z0-9._~+/=-]"

# Marker that must occur (in lower case) → prefix to keep, and the secret. The marker makes the
# common case, no secret at all, a plain substring search. Ordinary words must not match:
# trajectories are training data. Look-aheads are bounded: the texts are hostile.
_SHAPES = tuple(
    (marker, re.compile(f"({prefix})(?:{secret})"))
    for marker, prefix, secret in (
        ("sk-", r"\b", r"sk-(?=[A-Za-z_-]{0,64}\d)[A-Za-z0-9_-]{16,}|sk-[A-Za-z0-9]{20,}"),
        ("bearer", r"(?i:\bbearer)\s{1,4}", rf"(?=[^\s\d]{{0,64}}\d){_WORD}{{12,}}|{_WORD}{{32,}}"),
        ("akia", r"\b", r"AKIA[A-Z0-9]{16}\b"),
        ("asia", r"\b", r"ASIA[A-Z0-9]{16}\b"),
        *((f"gh{kind}_", r"\b", rf"gh{kind}_[A-Za-z0-9]{{30,}}") for kind in "pousr"),
        ("github_pat_", r"\b", r"github_pat_[A-Za-z0-9_]{30,}"),
        ("hf_", r"\b", r"hf_[A-Za-z0-9]{30,}"),
        ("aiza", r"\b", r"AIza[A-Za-z0-9_-]{35}"),
        ("xox", r"\b", r"xox[abprs]-[A-Za-z0-9-]{10,}"),
        (
            "private key-----",
            r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
            r"[^-]{16,}(?=-----END)",
        ),
    )
)

_SHORT_ESCAPES = {
    '"': '"', "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t",
}  # fmt: skip


class Redactor:
    """Replaces secrets by `[redacted]`.

    A secret is found as it is and as JSON may write it (any of its characters escaped, also
    twice over). Known shapes of credentials (`sk-…`, `Bearer …`, AWS, GitHub, Hugging Face,
    Google and Slack tokens, PEM private keys) are replaced without being known. Not found: a
    secret cut in two by separate strings, encoded in another way, or shorter than 6 characters.

    Args:
        secrets: values to hide.
        env: environment variables; the values of those whose names end like a key, token,
            secret, password or credential are hidden too, unless they are plain numbers.
    """

    def __init__(self, secrets: Iterable[str] = (), env: Mapping[str, str] | None = None) -> None:
        values = {value.strip() for value in secrets}
        for name, value in (env or {}).items():
            if _SECRET_NAME.search(name) and not value.strip().isdigit():
                values.add(value.strip())
        # The longest first: a secret may contain another.
        self._values = tuple(
            sorted((v for v in values if len(v) >= _SHORTEST), key=lambda v: (-len(v), v))
        )
        self._escaped = tuple(re.compile("".join(map(_any_escape, v))) for v in self._values)

    def text(self, text: str) -> str:
        """The text without secrets; the same object if there were none."""
        if "\\" in text:  # first, so that no half of an escape is taken for the plain secret
            for pattern in self._escaped:
                text = pattern.sub(_MASK, text)
        for value in self._values:
            if value in text:
                text = text.replace(value, _MASK)
        lowered = text.lower()
        for marker, pattern in _SHAPES:
            if marker in lowered:
                text = pattern.sub(rf"\g<1>{_MASK}", text)
        return text

    def clean(self, value: T) -> T:
        """The value with every string in it redacted, keys included. Never raises.

        Records, mappings, lists, tuples, sets and bytes are looked into and copied only where
        something changed. An object of any other type whose text holds a secret is replaced by
        its redacted text, and what is nested more than 64 deep by a note. Enumerations, and fields
        of records that say what these are about (`rollout_id`, `role`, ...), stay as they are.
        """
        return cast("T", self._clean(value, DEEPEST))

    def _clean(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float | Enum):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            text = value.decode("utf-8", "surrogateescape")
            redacted = self.text(text)
            return value if redacted is text else redacted.encode("utf-8", "surrogateescape")
        if isinstance(value, msgspec.Struct | dict | list | tuple | set | frozenset):
            return self._clean_container(value, depth - 1) if depth else TOO_DEEP
        try:
            text = str(value)
        except Exception:  # a `__str__` of somebody else's fails: its repr stands for it
            return self.text(shown(value))
        redacted = self.text(text)
        return value if redacted == text else redacted

    def _clean_container(self, value: Any, depth: int) -> Any:
        if isinstance(value, msgspec.Struct):
            return self._clean_record(value, depth)
        if isinstance(value, dict):
            items = cast("dict[Any, Any]", value).items()
            pairs = [(self._clean(key, depth), self._clean(item, depth)) for key, item in items]
            same = all(a is c and b is d for (a, b), (c, d) in zip(pairs, items, strict=True))
            return cast("object", value) if same else dict(pairs)
        return self._clean_items(cast("Collection[Any]", value), depth)

    def _clean_record(self, record: msgspec.Struct, depth: int) -> msgspec.Struct:
        changed: dict[str, Any] = {}
        for name in record.__struct_fields__:
            if name in _OURS:
                continue
            before: Any = getattr(record, name)
            after = self._clean(before, depth)
            if after is not before:
                changed[name] = after
        return msgspec.structs.replace(record, **changed) if changed else record

    def _clean_items(self, items: Collection[Any], depth: int) -> Collection[Any]:
        cleaned = [self._clean(item, depth) for item in items]
        if all(a is b for a, b in zip(cleaned, items, strict=True)):
            return items
        kind = cast("Callable[..., Collection[Any]]", type(items))
        return kind(*cleaned) if hasattr(items, "_fields") else kind(cleaned)  # a named tuple


def _any_escape(char: str) -> str:
    """A pattern for one character of a secret: itself, or a JSON escape of it, also repeated.

    At most 8 backslashes are looked at, so that a hostile text of backslashes costs no more.
    """
    units = char.encode("utf-16-be", "surrogatepass").hex()
    codes = [units[i : i + 4] for i in range(0, len(units), 4)]
    forms = ["".join(rf"\\{{1,8}}u(?i:{code})" for code in codes), re.escape(char)]
    if char == "\\":  # 2 for each level; what is left of a run belongs to what follows
        forms = [rf"\\{{{2**level}}}" for level in (3, 2, 1)] + forms
    elif char in _SHORT_ESCAPES:
        forms.insert(0, r"\\{1,8}" + _SHORT_ESCAPES[char])
    return f"(?:{'|'.join(forms)})"
