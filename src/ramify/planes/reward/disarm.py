"""Git repositories of an agent's, made such that git runs no program for being used in them.

What git runs there is chosen by configuration (drivers, filters, aliases, helpers, monitors) and by
hooks. Of the configuration a list of variables stays that run nothing; hooks go. It is done on the
host, on the copy that crosses, by reading and writing files: git is never run, no link followed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

from ramify.planes.reward.gitconfig import BadConfigError, Entry, parse_config, write_config

_MAX_CONFIG_BYTES = 256 * 1024
_MAX_ALL_BYTES = 4 * 1024 * 1024
"""What is read of configurations, in one tree. More of it is not read but replaced."""
_MAX_COMMONDIR = 100
_MAX_NOTES = 20
_MAX_NOTE = 200
_CONFIGS = ("config", "config.worktree")
_DIRECTORIES = ("hooks", "remotes", "branches")
"""Of a repository; the last two are remotes as they were once written down."""
_PLAN = "git-rebase-todo"
"""What a rebase that goes on will do, which may be any program."""

_PLAIN = {
    b"core": b"repositoryformatversion filemode bare logallrefupdates symlinks ignorecase "
    b"precomposeunicode autocrlf eol sharedrepository sparsecheckout sparsecheckoutcone",
    b"extensions": b"objectformat compatobjectformat refstorage worktreeconfig relativeworktrees",
    b"user": b"name email",
    b"author": b"name email",
    b"committer": b"name email",
    b"submodule": b"active",
}
_NAMED = {
    b"remote": b"fetch push tagopt",
    b"branch": b"merge rebase",
    b"submodule": b"path active branch",
}
"""Of sections with a subsection."""
_URLS = {
    b"remote": b"url pushurl",
    b"branch": b"remote pushremote",  # the name of a remote, or a URL
    b"submodule": b"url",
}
_ALLOWED = {section: frozenset(keys.split()) for section, keys in _PLAIN.items()}
_ALLOWED_NAMED = {section: frozenset(keys.split()) for section, keys in _NAMED.items()}
_URL_KEYS = {section: frozenset(keys.split()) for section, keys in _URLS.items()}
_SCHEME = re.compile(rb"([A-Za-z0-9+.-]+)://")
_SCHEMES = frozenset((b"http", b"https", b"git", b"ssh", b"file", b"ftp", b"ftps"))


def disarmed_in(tree: Path, name: str) -> list[str]:
    """Disarm every repository in a tree; what was taken out, up to 20 notes (`place: what`).

    `name` is the tree's own, where it will be.

    A repository is any directory with `objects` and `refs`, whatever it is called; one named `.git`
    or `*.git`, whatever is in it, and what a link of that name leads to; and one with `commondir`
    (a worktree's), which may name the repository it lies in and no other.

    Blocking. Raises: OSError.
    """
    notes: list[str] = []
    left = _MAX_ALL_BYTES
    for place in _repositories(tree, name):
        if not os.path.isdir(place):
            continue  # It was among the hooks of another.
        taken, read = _disarm(place, left)
        left -= read
        if taken and len(notes) < _MAX_NOTES:
            where = os.path.relpath(place, tree)
            notes.append(_shown(f"{where}: {', '.join(taken)}"))
    return notes


def keeps(entry: Entry) -> bool:
    """Whether git runs nothing for a variable, whatever its value is or as it is."""
    if entry.subsection is None:
        return entry.key in _ALLOWED.get(entry.section, ())
    if entry.key in _URL_KEYS.get(entry.section, ()):
        return entry.value is not None and _leads_to_no_program(entry.value)
    return entry.key in _ALLOWED_NAMED.get(entry.section, ())


def _leads_to_no_program(url: bytes) -> bool:
    """Git starts `git-remote-X` for `X::address` and for schemes that it does not know itself."""
    if b"::" in url or url.startswith(b"-") or any(byte < 32 for byte in url):
        return False
    scheme = _SCHEME.match(url)
    return scheme is None or scheme[1] in _SCHEMES


def _repositories(tree: Path, name: str) -> list[str]:
    """Directories of the tree that git may take for a repository, or for the main part of one."""
    top = os.path.realpath(tree)
    found: dict[str, None] = {}
    pending = [top] if os.path.isdir(top) and not tree.is_symlink() else []
    if pending and _named(name):
        found[top] = None
    while pending:
        place = pending.pop()
        with os.scandir(place) as listed:
            entries = {entry.name: entry for entry in listed}
        if {"objects", "refs"} <= entries.keys():
            found[place] = None
        if "commondir" in entries:
            found |= dict.fromkeys((place, os.path.dirname(os.path.dirname(place))))
        for each, entry in entries.items():
            # `git init` makes one of what has the name, whatever it lacks, and where a link leads.
            target = os.path.realpath(entry.path) if _named(each) else ""
            if os.path.isdir(target):
                found[target] = None
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
    return [place for place in found if _is_in(place, top)]


def _named(name: str) -> bool:
    return name.lower().endswith(".git")


def _is_in(place: str, top: str) -> bool:
    return place == top or place.startswith(f"{top}/")


def _disarm(place: str, left: int) -> tuple[list[str], int]:
    """Disarm one; what was taken out, and how many bytes were read."""
    taken: list[str] = []
    mode = stat.S_IMODE(os.lstat(place).st_mode)
    os.chmod(place, mode | 0o700)
    taken += [name for name in _DIRECTORIES if _remove(f"{place}/{name}")]
    plan = f"{place}/rebase-merge"
    if _remove(plan if os.path.islink(plan) else f"{plan}/{_PLAN}"):
        taken.append(_PLAN)
    if _strays(f"{place}/commondir"):
        _remove(f"{place}/commondir")
        taken.append("commondir")
    read = 0
    for name in _CONFIGS:
        lost, size = _reduce(f"{place}/{name}", left - read)
        taken += lost
        read += size
    os.chmod(place, mode)
    return taken, read


def _strays(path: str) -> bool:
    """Whether a `commondir` is not what git writes for a worktree."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_COMMONDIR:
        return True
    os.chmod(path, stat.S_IMODE(info.st_mode) | 0o600)
    return Path(path).read_bytes().rstrip(b"\r\n") != b"../.."


def _remove(path: str) -> bool:
    """Remove whatever stands there; whether anything but samples did."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(path)
        return True
    told = any(not name.endswith(".sample") for name in os.listdir(path))
    for folder, _, _ in os.walk(path):
        os.chmod(folder, 0o700)
    shutil.rmtree(path)
    return told


def _reduce(path: str, left: int) -> tuple[list[str], int]:
    """Replace a configuration by what may stay of it; the names of what went, and its size."""
    name = os.path.basename(path)
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return [], 0
    if not stat.S_ISREG(info.st_mode):
        _remove(path)
        return [f"{name} (no regular file)"], 0
    entries: list[Entry] = []
    lost: list[str] = []
    size = info.st_size
    if size > min(_MAX_CONFIG_BYTES, left):
        size, lost = 0, [f"{name} (too large)"]
    else:
        os.chmod(path, 0o600)
        try:
            entries = parse_config(Path(path).read_bytes())
        except BadConfigError as error:
            lost = [f"{name} ({error})"]
    kept = [entry for entry in entries if keeps(entry)]
    gone = dict.fromkeys(entry.name for entry in entries if not keeps(entry))
    lost += [each.decode(errors="replace") for each in gone]
    os.unlink(path)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(write_config(kept))
        os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777)
    return lost, size


def _shown(text: str) -> str:
    """On one line, of bounded length, without what steers a terminal."""
    clean = "".join(c if c.isprintable() else "?" for c in text.encode(errors="replace").decode())
    return clean if len(clean) <= _MAX_NOTE else f"{clean[:_MAX_NOTE]}..."
