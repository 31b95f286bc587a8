"""Git's configuration format, read without git: hostile bytes in, keys and values out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_SPACE = b" \t\n\r"
_KEY = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ESCAPES = {ord("t"): 9, ord("b"): 8, ord("n"): 10, ord("\\"): 92, ord('"'): 34}
_END, _OPEN, _CLOSE, _QUOTE, _BACKSLASH, _EQUALS = 10, 91, 93, 34, 92, 61
_COMMENT = b"#;"
_MAX_ENTRIES = 10_000


class Entry(NamedTuple):
    """One variable. `section` and `key` are in lower case, a `subsection` is as it stands.

    `value` is None where there is not even a `=`, which git takes for true.
    """

    section: bytes
    subsection: bytes | None
    key: bytes
    value: bytes | None

    @property
    def name(self) -> bytes:
        """As git shows it: `section.subsection.key`."""
        middle = b"" if self.subsection is None else self.subsection + b"."
        return self.section + b"." + middle + self.key


class BadConfigError(ValueError):
    """Git could not read it either, or it is none that git writes."""


def parse_config(data: bytes) -> list[Entry]:
    """The variables of a configuration, in order.

    Reads what git reads, but for a file with a zero byte or more than 10,000 variables, and one
    with a variable before any section: those are refused.

    Raises: BadConfigError.
    """
    if b"\0" in data:
        raise BadConfigError("a zero byte")
    return _Parser(data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")).run()


class _Parser:
    """One pass over the bytes. Past their end there are line ends without end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def run(self) -> list[Entry]:
        entries: list[Entry] = []
        section: tuple[bytes, bytes | None] | None = None
        while self._at < len(self._data):
            byte = self._next()
            if byte in _SPACE:
                continue
            if byte in _COMMENT:
                self._skip_line()
            elif byte == _OPEN:
                section = self._section()
            elif section is None or byte not in _LETTERS:
                raise BadConfigError("neither a section nor a variable")
            elif len(entries) == _MAX_ENTRIES:
                raise BadConfigError("too many variables")
            else:
                self._at -= 1
                entries.append(Entry(*section, *self._variable()))
        return entries

    def _next(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else _END

    def _skip_line(self) -> None:
        end = self._data.find(b"\n", self._at)
        self._at = len(self._data) if end < 0 else end

    def _section(self) -> tuple[bytes, bytes | None]:
        """What follows a `[`. A dot in the old form of a name begins its subsection."""
        name = bytearray()
        while (byte := self._next()) != _CLOSE:
            if self._at > len(self._data):
                raise BadConfigError("a section without its end")
            if byte in _SPACE:
                return self._quoted(name, byte)
            if byte not in _KEY and byte != ord("."):
                raise BadConfigError("a strange name of a section")
            name.append(byte)
        if not name:
            raise BadConfigError("a section without a name")
        section, dot, subsection = bytes(name).lower().partition(b".")
        return section, subsection if dot else None

    def _quoted(self, name: bytearray, byte: int) -> tuple[bytes, bytes | None]:
        while byte in _SPACE:
            if byte == _END:
                raise BadConfigError("a section over several lines")
            byte = self._next()
        if byte != _QUOTE:
            raise BadConfigError("a subsection without quotes")
        found = bytearray()
        while (byte := self._next()) != _QUOTE:
            if byte == _BACKSLASH:
                byte = self._next()
            if byte == _END:
                raise BadConfigError("a subsection over several lines")
            found.append(byte)
        if self._next() != _CLOSE:
            raise BadConfigError("a section without its end")
        section, dot, more = bytes(name).lower().partition(b".")
        return section, (more + b"." if dot else b"") + bytes(found)

    def _variable(self) -> tuple[bytes, bytes | None]:
        start = self._at
        while self._next() in _KEY:
            pass
        self._at -= 1
        key = self._data[start : self._at].lower()
        while (byte := self._next()) in b" \t":
            pass
        if byte == _END:
            return key, None
        if byte != _EQUALS:
            raise BadConfigError("a variable without its value")
        return key, self._value()

    def _value(self) -> bytes:
        """Up to the end of the line. Spaces around it go; those within it stay as they are many."""
        found, spaces, quoted = bytearray(), 0, False
        while True:
            byte = self._next()
            if byte == _END:
                if quoted:
                    raise BadConfigError("a quote without its end")
                return bytes(found)
            if not quoted and byte in _SPACE:
                spaces += bool(found)
                continue
            if not quoted and byte in _COMMENT:
                self._skip_line()
                continue
            found += b" " * spaces
            spaces = 0
            if byte == _QUOTE:
                quoted = not quoted
            elif byte != _BACKSLASH:
                found.append(byte)
            elif (byte := self._next()) != _END:
                if byte not in _ESCAPES:
                    raise BadConfigError("an unknown escape")
                found.append(_ESCAPES[byte])


def write_config(entries: Iterable[Entry]) -> bytes:
    """A configuration that holds exactly these, each under a head of its own, everything quoted.

    Their names are such as `parse_config` gives.
    """
    return b"".join(_head(entry) + _line(entry) for entry in entries)


def _head(entry: Entry) -> bytes:
    if entry.subsection is None:
        return b"[" + entry.section + b"]\n"
    return b"[" + entry.section + b' "' + _escaped(entry.subsection) + b'"]\n'


def _line(entry: Entry) -> bytes:
    if entry.value is None:
        return b"\t" + entry.key + b"\n"
    text = _escaped(entry.value).replace(b"\n", b"\\n").replace(b"\t", b"\\t")
    return b"\t" + entry.key + b' = "' + text.replace(b"\b", b"\\b") + b'"\n'


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
