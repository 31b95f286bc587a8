"""Keeps the values of secrets out of what a run writes and shows.

A value is looked for as it is and as programs commonly write it: JSON, XML and Python escapes,
percent-encoding, hexadecimal, and base64 at any alignment (also wrapped at 76 characters); a value
of several lines also line by line. A value that was changed in any other way is not found.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

from ramify.contracts.errors import ConfigError

_MASK = b"***"
_SHORTEST = 6
_SHORTEST_PIECE = 8
_LONGEST = 16 * 1024
_WRAPPED_AT = 76


class Masker:
    """Replaces secrets by `***`, in texts or in streams of bytes.

    Args:
        secrets: name → value.

    Raises:
        ConfigError: a value is shorter than 6 characters (masking it would garble everything and
            hide little) or longer than 16 KiB.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        patterns: set[bytes] = set()
        for name, value in secrets.items():
            size = len(value.strip().encode("utf-8", "surrogateescape"))
            if size < _SHORTEST:
                raise ConfigError(
                    f"its value has {size} bytes; under {_SHORTEST} it cannot be kept out of logs, "
                    "so give a longer one, or pass it with `pass_env` if it is no secret",
                    field=f"secret {name}",
                )
            if size > _LONGEST:
                raise ConfigError(
                    f"its value has {size} bytes, at most {_LONGEST} can be masked; put it into "
                    "a file outside the repository instead",
                    field=f"secret {name}",
                )
            patterns.update(_variants(value.strip()))
        self._patterns = tuple(sorted(patterns))

    def stream(self) -> MaskStream:
        """A masker for one stream of bytes."""
        return MaskStream(self._patterns)

    def bytes(self, data: bytes) -> bytes:
        """All of `data`, masked."""
        stream = self.stream()
        return stream.feed(data) + stream.close()

    def text(self, text: str) -> str:
        """All of `text`, masked."""
        if not self._patterns:
            return text
        data = text.encode("utf-8", "surrogateescape")
        return self.bytes(data).decode("utf-8", "surrogateescape")


class MaskStream:
    """Masks one stream; a secret is found wherever the pieces of the stream are cut.

    Holds back at most as many bytes as the longest form of a secret has.
    """

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        self._patterns = patterns
        self._held = b""
        self._covered = 0  # bytes at the start of `_held` whose mask was given out already

    def feed(self, data: bytes) -> bytes:
        """The next piece; what can be given out of the stream so far, masked."""
        if not self._patterns:
            return data
        return self._give(self._held + data, last=False)

    def close(self) -> bytes:
        """What was held back; the stream ends here."""
        return self._give(self._held, last=True)

    def _give(self, buffer: bytes, *, last: bool) -> bytes:
        """Give out `buffer` up to where a secret may have begun that is not complete yet."""
        end = len(buffer) if last else self._hold_from(buffer)
        parts: list[bytes] = []
        at = covered = self._covered
        for start, stop in _merged(self._found(buffer)):
            if start >= end:
                break
            if start >= covered:
                parts += [buffer[at:start], _MASK]
            at = covered = max(at, stop)
        parts.append(buffer[at:end])
        self._held, self._covered = buffer[end:], max(0, covered - end)
        return b"".join(parts)

    def _found(self, buffer: bytes) -> Iterator[tuple[int, int]]:
        """Where secrets stand; they may overlap."""
        for pattern in self._patterns:
            at = buffer.find(pattern)
            while at >= 0:
                yield at, at + len(pattern)
                at = buffer.find(pattern, at + 1)

    def _hold_from(self, buffer: bytes) -> int:
        """Where the longest end of `buffer` begins that a secret could begin with."""
        earliest = len(buffer)
        for pattern in self._patterns:
            first = pattern[:1]
            at = buffer.find(first, max(0, len(buffer) - len(pattern) + 1), earliest)
            while at >= 0:
                if pattern.startswith(buffer[at:]):
                    earliest = at
                    break
                at = buffer.find(first, at + 1, earliest)
        return earliest


def _merged(found: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _variants(value: str) -> Iterator[bytes]:
    """The forms in which a secret may stand somewhere."""
    data = value.encode("utf-8", "surrogateescape")
    lines = [line.strip() for line in value.splitlines()]
    for piece in {value, *(line for line in lines if len(line) >= _SHORTEST_PIECE)}:
        raw = piece.encode("utf-8", "surrogateescape")
        yield raw
        for text in (
            json.dumps(piece)[1:-1],
            json.dumps(piece, ensure_ascii=False)[1:-1],
            repr(piece)[1:-1],
            html.escape(piece),
            html.escape(piece, quote=False),
        ):
            yield text.encode("utf-8", "surrogateescape")
        for text in (quote(raw, safe=""), quote(raw), quote_plus(raw)):
            yield text.encode()
            yield _lower_escapes(text).encode()
        if len(raw) >= _SHORTEST_PIECE:
            yield raw.hex().encode()
            yield raw.hex().upper().encode()
    if len(lines) > 1:
        yield data.replace(b"\r\n", b"\n")
        yield data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    yield from _base64_forms(data)


def _lower_escapes(text: str) -> str:
    head, *rest = text.split("%")
    return head + "".join("%" + piece[:2].lower() + piece[2:] for piece in rest)


def _base64_forms(data: bytes) -> Iterator[bytes]:
    """Base64 of the secret alone, and the part of base64 it decides within anything longer."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        alone = encode(data)
        yield alone
        yield alone.rstrip(b"=")
        for start in range(0, len(alone), _WRAPPED_AT):
            line = alone[start : start + _WRAPPED_AT]
            if len(line) == _WRAPPED_AT:
                yield line
        for before in range(3):
            # 4 characters stand for 3 bytes: the first that the secret alone decides, to the last.
            first = -(-before * 8 // 6)
            last = (before + len(data)) * 8 // 6
            piece = encode(bytes(before) + data)[first:last]
            if len(piece) >= _SHORTEST_PIECE - 2:
                yield piece
