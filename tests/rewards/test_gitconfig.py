"""Our reading of git's configuration format, beside git's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ramify.planes.reward.gitconfig import BadConfigError, Entry, parse_config, write_config

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
_PIECES = (
    *(
        b"[a]",
        b"[core]",
        b'[a "b c"]',
        b'[a "b\\"]c\\\\"]',
        b"[a.B-c]",
        b"[a",
        b"[]",
        b"[a.]",
        b"[.a]",
    ),
    *(
        b'[a. "b"]',
        b"[a \t\r ",
        b"]",
        b"key",
        b"Key-1",
        b"k.l",
        b"=",
        b" = ",
        b"\n",
        b"\r\n",
        b"\r",
    ),
    *(
        b'"',
        b"\\",
        b"\\\n",
        b"\\\r\n",
        b"\\n",
        b"\\t",
        b"\\b",
        b"\\x",
        b'\\"',
        b"#",
        b";",
        b" ",
        b"\t",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xef",
        b"\xff",
        b"\x0b",
        b"\x0c",
        b"true",
        b"/a b/c",
        b"!x",
        b"$(x)",
        b"-",
        b"_",
    ),
)
_TEXT = st.lists(st.sampled_from(_PIECES) | st.binary(max_size=3), max_size=24).map(b"".join)
_NICE = st.lists(
    st.sampled_from([b"[a]\n", b'[b "C d"]\n', b"k = v\n", b'k = " v ; " # c\n', b"bare\n",
                     b"k = a  b \\\n c\n", b"# x\n", b"\n", b'k = a"  "b\n', b"k=\n"]),
    max_size=12,
).map(lambda lines: b"[x]\n" + b"".join(lines))  # fmt: skip


def _git(path: Path) -> list[tuple[bytes, bytes | None]] | None:
    """What git reads; None where it refuses the file."""
    done = subprocess.run(
        ["git", "config", "--file", str(path), "--list", "-z"],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": "/nonexistent", "LC_ALL": "C"},
        timeout=20,
    )
    if done.returncode != 0:
        return None
    found: list[tuple[bytes, bytes | None]] = []
    for item in done.stdout.split(b"\0")[:-1]:
        name, line, value = item.partition(b"\n")
        found.append((name, value if line else None))
    return found


def _spaces(found: list[tuple[bytes, bytes | None]]) -> list[tuple[bytes, bytes | None]]:
    """Releases of git differ in what becomes of tabs and returns within a value."""
    table = bytes.maketrans(b"\t\r", b"  ")
    return [(name, value and value.translate(table)) for name, value in found]


def _ours(data: bytes) -> list[tuple[bytes, bytes | None]] | None:
    try:
        return [(entry.name, entry.value) for entry in parse_config(data)]
    except BadConfigError:
        return None


@needs_git
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=_TEXT | _NICE)
@example(b'[a "b\\\nc"]\nk=v\n')
@example(b"[a]k=v\\")
@example(b"[a]\nk = a\\\r\nb\n")
@example(b"[a]\nk = 'x' \"#y\" ; z\n")
@example(b'\xef\xbb\xbf[a]\nk="\n')
@example(b"[a]\r\r\nk\r\n")
@example(b"[a]k[b]l=1\n")
def test_it_reads_what_git_reads(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    theirs, ours = _git(path), _ours(data)
    if ours is None:
        # Two things we refuse that git reads: a zero byte, and a variable without a section.
        told = b"\0" in data or any(b"." not in name for name, _ in theirs or ())
        assert theirs is None or told, (data, theirs)
        return
    assert theirs is not None, (data, ours)
    assert _spaces(ours) == _spaces(theirs), data


_NAME = st.sampled_from([b"core", b"remote", b"branch"])
_BYTES = st.binary(max_size=20).filter(lambda text: b"\0" not in text)
_ENTRIES = st.lists(
    st.builds(
        Entry,
        _NAME,
        st.none() | _BYTES.filter(lambda text: b"\n" not in text),
        st.sampled_from([b"url", b"bare", b"k-1"]),
        st.none() | _BYTES,
    ),
    max_size=8,
)


@needs_git
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entries=_ENTRIES)
@example([Entry(b"core", b'a"]\\', b"url", b'x\n[b]\nc=d\r\n"\\')])
def test_git_reads_what_was_written(tmp_path: Path, entries: list[Entry]) -> None:
    path = tmp_path / "config"
    path.write_bytes(write_config(entries))
    assert parse_config(path.read_bytes()) == entries
    assert _git(path) == [(entry.name, entry.value) for entry in entries]


@pytest.mark.parametrize(
    "data",
    [
        b"[a]\nk=\0",
        b"k=v\n",
        b"[a]\n" + b"k\n" * 10_001,
        b"[a]\nk = \\q\n",
        b'[a "b]\n',
        b"[a]\n_=1",
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(BadConfigError):
        parse_config(data)
