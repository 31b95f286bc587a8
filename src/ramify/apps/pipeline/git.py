"""Reads a repository that may be hostile, without running anything of it.

git is never pointed at the repository's own `.git`: its configuration, hooks, filters and file
system monitors are programs that whoever wrote there has chosen. It works in a directory of our
own that borrows the objects and references, and every object that is read is checked against its
id, so that a pinned commit says what it said when it was pinned.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ramify.contracts.errors import ConfigError, InfraError

GITLINK = "160000"
_DIRECTORY = "40000"
_SEC = 120.0
_SHA = re.compile(rb"[0-9a-f]{40}([0-9a-f]{24})?")
_MOST_LINKS = 5
_SMALL = 1 << 20


class TreeEntry(NamedTuple):
    """A file of a git tree: its mode as git writes it, and the id of its content."""

    mode: str
    oid: str


class GitDirs(NamedTuple):
    """Where a repository keeps its own: `own` of this working tree, `common` of all of them."""

    own: Path
    common: Path


def find_git(repo: Path) -> GitDirs | None:
    """The git directories of a repository, None where there are none.

    Raises: ConfigError (`.git` leads elsewhere, and what is there does not say it belongs here).
    """
    dot = repo / ".git"
    try:
        mode = dot.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        return GitDirs(dot, dot) if (dot / "HEAD").exists() else None
    if not stat.S_ISREG(mode):
        raise ConfigError("is neither a directory nor a file; verify a real checkout", str(dot))
    text = _small(dot).strip()
    own = Path(os.path.normpath(repo / os.fsdecode(text.removeprefix(b"gitdir:").strip())))
    back = own / "gitdir"
    common = own / "commondir"
    if not text.startswith(b"gitdir:") or not (own / "HEAD").is_file():
        raise ConfigError("does not lead to a git directory", str(dot))
    if back.is_file() and common.is_file():  # a linked working tree: both ends must say so
        if os.path.realpath(os.fsdecode(_small(back).strip())) != os.path.realpath(dot):
            raise ConfigError("leads to the git directory of another working tree", str(dot))
        shared = Path(os.path.realpath(own / os.fsdecode(_small(common).strip())))
        if Path(os.path.realpath(own)).parent != shared / "worktrees":
            raise ConfigError("leads to a git directory that is not its repository's", str(dot))
        return GitDirs(own, shared)
    raise ConfigError("is of a submodule; verify the repository above it", str(dot))


class Git:
    """A repository's objects and names, read-only.

    Args:
        repo: the working tree.
        dirs: what `find_git` found.
        shadow: an empty directory of ours.

    Raises:
        ConfigError: git is not installed.
    """

    def __init__(self, repo: Path, dirs: GitDirs, shadow: Path) -> None:
        program = shutil.which("git")
        if program is None:
            raise ConfigError("this is a git repository, and git is not installed", str(repo))
        self._program, self._repo, self._dirs, self._shadow = program, repo, dirs, shadow
        self._sha256 = _object_format(dirs.common) == "sha256"
        self._furnish()

    @property
    def exclude(self) -> bytes:
        """The text of `info/exclude`."""
        return _small(self._dirs.common / "info" / "exclude")

    async def commit(self, name: str) -> str | None:
        """The id of the commit of that name, None when there is none.

        Raises: ConfigError (git refuses the repository).
        """
        if name.startswith("-"):
            raise ConfigError(f"{name!r} is no name of a commit")
        asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        code, out, _err = await self._run(asked)
        found = out.strip()
        return found.decode() if code == 0 and _SHA.fullmatch(found) else None

    async def tree(self, commit: str) -> tuple[str, dict[str, TreeEntry]]:
        """The id of a commit's tree, and its files by path, all checked.

        Raises: ConfigError (objects are missing or are not what their ids say).
        """
        (data,) = (await self.read([commit], b"commit")).values()
        first = data.split(b"\n", 1)[0].removeprefix(b"tree ")
        if not _SHA.fullmatch(first):
            raise ConfigError(f"the commit {commit} is malformed", str(self._dirs.common))
        root = first.decode()
        files: dict[str, TreeEntry] = {}
        level = [("", root)]
        while level:
            trees = await self.read({oid for _place, oid in level}, b"tree")
            level = await asyncio.to_thread(self._level, level, trees, files)
        return root, files

    async def read(self, oids: Iterable[str], kind: bytes) -> dict[str, bytes]:
        """Objects by id, each checked against it.

        Raises: ConfigError (one is missing, of another kind, or not what its id says).
        """
        wanted = list(oids)
        asked = "".join(f"{oid}\n" for oid in wanted).encode()
        code, out, err = await self._run(("cat-file", "--batch"), asked)
        if code != 0:
            raise self._broken(err)
        return await asyncio.to_thread(self._checked, wanted, kind, out)

    async def read_small(self, oids: Iterable[str], limit: int) -> dict[str, bytes]:
        """Those of these files that are there and have less than `limit` bytes, each checked.

        Raises: ConfigError (git refuses the repository, or one is not what its id says).
        """
        asked = "".join(f"{oid}\n" for oid in set(oids)).encode()
        if not asked:
            return {}
        code, out, err = await self._run(("cat-file", "--batch-check"), asked)
        if code != 0:
            raise self._broken(err)
        rows = [line.split(" ") for line in out.decode().splitlines()]
        small = [row[0] for row in rows if row[1:2] == ["blob"] and int(row[2]) < limit]
        return await self.read(small, b"blob") if small else {}

    def _checked(self, wanted: list[str], kind: bytes, out: bytes) -> dict[str, bytes]:
        """The objects that `cat-file --batch` gave, in order."""
        found: dict[str, bytes] = {}
        at = 0
        for oid in wanted:
            end = out.find(b"\n", at)
            head = out[at:end].split(b" ")
            if end < 0 or len(head) != 3 or head[1] != kind or not head[2].isdigit():
                raise self._broken(f"{oid} is missing".encode())
            size = int(head[2])
            data = out[end + 1 : end + 1 + size]
            if self.oid(kind, data) != oid:
                raise self._broken(f"{oid} is not what its id says".encode())
            found[oid] = data
            at = end + size + 2
        return found

    async def index(self) -> dict[str, TreeEntry]:
        """The files that are staged, by path. Raises: ConfigError (the index is unreadable)."""
        return await self.index_of(self._dirs.own / "index")

    async def index_of(self, file: Path) -> dict[str, TreeEntry]:
        """The files that an index names, by path; nothing where there is no such file.

        Raises: ConfigError (it is unreadable).
        """
        copy = self._shadow / "index"
        try:
            await asyncio.to_thread(_copy, file, copy)
        except FileNotFoundError:
            return {}
        code, out, err = await self._run(("ls-files", "--stage", "-z"))
        if code != 0:
            raise self._broken(err)
        return await asyncio.to_thread(_staged, out)

    async def hash_files(self, paths: Iterable[str]) -> dict[str, str]:
        """The ids that the content of files would have, as `git add` would store them.

        Attributes that git itself understands apply; filters that are programs do not.

        Raises: ConfigError (a file cannot be read).
        """
        wanted = list(paths)
        if not wanted:
            return {}
        asked = b"".join(_quoted(path) + b"\n" for path in wanted)
        code, out, err = await self._run(("hash-object", "--stdin-paths"), asked)
        found = out.decode().split()
        if code != 0 or len(found) != len(wanted):
            raise self._broken(err)
        return dict(zip(wanted, found, strict=True))

    def oid(self, kind: bytes, data: bytes) -> str:
        """The id of an object."""
        make = hashlib.sha256 if self._sha256 else hashlib.sha1
        return make(kind + b" %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def tree_oid(self, files: Mapping[str, TreeEntry]) -> str:
        """The id of the tree of these files."""
        below: dict[str, dict[str, TreeEntry]] = {}
        rows: list[tuple[bytes, bytes]] = []
        for path, entry in files.items():
            name, slash, rest = path.partition("/")
            if slash:
                below.setdefault(name, {})[rest] = entry
            else:
                rows.append((os.fsencode(name), _row(entry.mode, name, entry.oid)))
        for name, inner in below.items():
            row = _row(_DIRECTORY, name, self.tree_oid(inner))
            rows.append((os.fsencode(name) + b"/", row))
        return self.oid(b"tree", b"".join(row for _key, row in sorted(rows)))

    def _level(
        self, level: list[tuple[str, str]], trees: dict[str, bytes], files: dict[str, TreeEntry]
    ) -> list[tuple[str, str]]:
        """Add the files of one level of a tree; the directories of the next."""
        below: list[tuple[str, str]] = []
        for place, oid in level:
            for name, entry in self._entries(trees[oid]):
                if entry.mode == _DIRECTORY:
                    below.append((f"{place}{name}/", entry.oid))
                else:
                    files[place + name] = entry
        return below

    def _entries(self, data: bytes) -> Iterable[tuple[str, TreeEntry]]:
        size = 32 if self._sha256 else 20
        at = 0
        while at < len(data):
            space, zero = data.index(b" ", at), data.index(b"\0", at)
            oid = data[zero + 1 : zero + 1 + size].hex()
            name = os.fsdecode(data[space + 1 : zero])
            if name in ("", ".", "..") or "/" in name:
                raise self._broken(b"a tree holds a name that no file can have")
            yield name, TreeEntry(data[at:space].decode(), oid)
            at = zero + 1 + size

    def _furnish(self) -> None:
        """A git directory that has the repository's objects and references, and nothing else."""
        shadow, dirs = self._shadow, self._dirs
        (shadow / "objects" / "info").mkdir(parents=True)
        objects = os.fsencode((dirs.common / "objects").resolve())
        (shadow / "objects" / "info" / "alternates").write_bytes(objects + b"\n")
        (shadow / "info").mkdir()
        for name in ("refs", "packed-refs"):
            if (dirs.common / name).exists():
                (shadow / name).symlink_to((dirs.common / name).resolve())
        for shared in dirs.own.glob("sharedindex.*"):
            (shadow / shared.name).symlink_to(shared.resolve())
        (shadow / "HEAD").write_bytes(_small(dirs.own / "HEAD"))
        version = "1\n[extensions]\n\tobjectformat = sha256" if self._sha256 else "0"
        (shadow / "config").write_text(f"[core]\n\trepositoryformatversion = {version}\n")

    async def _run(self, args: tuple[str, ...], stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            self._program,
            "-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._repo,
            env=self._environment(),
        )  # fmt: skip
        try:
            async with asyncio.timeout(_SEC):
                out, err = await process.communicate(stdin)
        except TimeoutError:
            raise InfraError(f"git {args[0]} did not answer within {_SEC:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out, err

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._shadow),
            "XDG_CONFIG_HOME": str(self._shadow),
            "LC_ALL": "C",
            "GIT_DIR": str(self._shadow),
            "GIT_WORK_TREE": str(self._repo),
            "GIT_INDEX_FILE": str(self._shadow / "index"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def _broken(self, said: bytes) -> ConfigError:
        line = said.decode("utf-8", "replace").strip().partition("\n")[0][:200]
        shown = "".join(c if c.isprintable() else "?" for c in line)
        return ConfigError(f"git cannot read it: {shown}; try `git fsck`", str(self._repo))


def head_of(repo: Path) -> str | None:
    """The commit that a nested repository stands at, read without git; None when unknown."""
    try:
        dirs = find_nested(repo)
        if dirs is None:
            return None
        text = _small(dirs / "HEAD").strip()
        for _ in range(_MOST_LINKS):
            if _SHA.fullmatch(text):
                return text.decode()
            name = os.path.normpath(os.fsdecode(text.removeprefix(b"ref: ")))
            if not text.startswith(b"ref: ") or not name.startswith("refs/"):
                return None
            text = _small(dirs / name).strip() or _packed(dirs, name)
    except (OSError, ConfigError):
        return None
    return None


def find_nested(repo: Path) -> Path | None:
    """The git directory of a submodule."""
    dot = repo / ".git"
    if dot.is_dir() and not dot.is_symlink():
        return dot
    text = _small(dot).strip()
    if not text.startswith(b"gitdir:"):
        return None
    return repo / os.fsdecode(text.removeprefix(b"gitdir:").strip())


def _staged(listed: bytes) -> dict[str, TreeEntry]:
    """What `ls-files --stage -z` says."""
    found: dict[str, TreeEntry] = {}
    for line in listed.split(b"\0")[:-1]:
        facts, _, path = line.partition(b"\t")
        mode, oid, _stage = facts.decode().split(" ")
        found[os.fsdecode(path)] = TreeEntry(mode, oid)
    return found


def _packed(dirs: Path, name: str) -> bytes:
    for line in _small(dirs / "packed-refs").splitlines():
        oid, _, ref = line.partition(b" ")
        if os.fsdecode(ref) == name:
            return oid
    return b""


def _object_format(common: Path) -> str:
    """sha1 or sha256, by the one setting of the repository's that decides how to read it."""
    setting = re.compile(rb"^\s*objectformat\s*=\s*\"?sha256\"?\s*$", re.I | re.M)
    return "sha256" if setting.search(_small(common / "config")) else "sha1"


def _small(file: Path) -> bytes:
    """A small regular file's content; nothing when it is absent or anything else."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(file)) from error
    with os.fdopen(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        return opened.read(8 * _SMALL)


def _copy(source: Path, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file, target.open("wb") as copy:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(source)
        shutil.copyfileobj(file, copy, _SMALL)


def _quoted(path: str) -> bytes:
    raw = os.fsencode(path)
    if b"\n" not in raw and not raw.startswith(b'"'):
        return raw
    inner = raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return b'"' + inner + b'"'


def _row(mode: str, name: str, oid: str) -> bytes:
    return mode.encode() + b" " + os.fsencode(name) + b"\0" + bytes.fromhex(oid)
