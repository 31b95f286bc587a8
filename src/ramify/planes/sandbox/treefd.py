"""Writing a tree below one directory, by descriptors only.

Every step is relative to a descriptor of a directory inside the tree and refuses links, so neither
the names in an archive nor the links it made before can lead outside.
"""

from __future__ import annotations

import errno
import os
import stat

from ramify.planes.sandbox.descent import DIR_FLAGS, remove

Parts = tuple[bytes, ...]
"""A path below the root, by components; () is the root itself."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_MAX = 255
_PATH_MAX = 3072


class PathRefusedError(Exception):
    """A path that is not created; says why in few words."""


def split_entry_name(name: bytes, *, strip_root: bool = False) -> Parts:
    """Components of a name from an archive.

    Raises PathRefusedError for `..`, NUL, over-long names and (unless `strip_root`) absolute ones.
    """
    if b"\0" in name:
        raise PathRefusedError("contains NUL")
    if name.startswith(b"/") and not strip_root:
        raise PathRefusedError("absolute path")
    if len(name) > _PATH_MAX:
        raise PathRefusedError("path too long")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise PathRefusedError("contains ..")
    if any(len(part) > _NAME_MAX for part in parts):
        raise PathRefusedError("name too long")
    return parts


class TreeWriter:
    """Creates files, directories and links below `root_fd` (which it owns from now on).

    A link at a directory's place is never followed: with `replace_links` a directory replaces it,
    otherwise PathRefusedError is raised.
    """

    def __init__(self, root_fd: int, *, replace_links: bool) -> None:
        self._replace_links = replace_links
        self._names: list[bytes] = []
        self._fds = [root_fd]
        self.made_dirs = 0

    def close(self) -> None:
        """Free the descriptors. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())

    @property
    def root_fd(self) -> int:
        """Descriptor of the root of the tree."""
        return self._fds[0]

    def enter(self, parts: Parts, *, make: bool = True) -> int:
        """Descriptor of a directory, valid until the next call; missing ones are made (0755).

        Raises: PathRefusedError, FileNotFoundError (without `make`).
        """
        shared = 0
        for have, want in zip(self._names, parts, strict=False):
            if have != want:
                break
            shared += 1
        while len(self._names) > shared:
            self._names.pop()
            os.close(self._fds.pop())
        for name in parts[shared:]:
            self._fds.append(self._step(self._fds[-1], name, make))
            self._names.append(name)
        return self._fds[-1]

    def _step(self, dir_fd: int, name: bytes, make: bool) -> int:
        try:
            return os.open(name, DIR_FLAGS, dir_fd=dir_fd)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if not self._replace_links or not make or not stat.S_ISLNK(info.st_mode):
                raise PathRefusedError("a parent is not a directory") from None
            os.unlink(name, dir_fd=dir_fd)
        os.mkdir(name, 0o755, dir_fd=dir_fd)
        self.made_dirs += 1
        return os.open(name, DIR_FLAGS, dir_fd=dir_fd)

    def directory(self, parts: Parts) -> int:
        """Make a directory, or take the one there; replaces a file or link. Descriptor as `enter`.

        Raises: PathRefusedError.
        """
        if parts:
            parent = self.enter(parts[:-1])
            try:
                info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISDIR(info.st_mode):
                    os.unlink(parts[-1], dir_fd=parent)
            except FileNotFoundError:
                pass
        return self.enter(parts)

    def file(self, parts: Parts) -> int:
        """Create a file anew and return a descriptor (of the caller) to write it.

        What stood there is replaced, save a directory that is not empty. Raises: PathRefusedError.
        """
        if not parts:
            raise PathRefusedError("it would replace the root")
        try:
            return os.open(parts[-1], _CREATE, 0o600, dir_fd=self.enter(parts[:-1]))
        except FileExistsError:
            return os.open(parts[-1], _CREATE, 0o600, dir_fd=self._cleared(parts))

    def symlink(self, parts: Parts, target: bytes) -> int:
        """Create a symbolic link; returns the descriptor of its directory, as `enter`."""
        parent = self._cleared(parts)
        os.symlink(target, parts[-1], dir_fd=parent)
        return parent

    def hard_link(self, parts: Parts, source: Parts) -> None:
        """Create a hard link to `source`, which must lie in the tree and not be a directory.

        Raises: PathRefusedError.
        """
        if not source or parts == source:
            raise PathRefusedError("hard link to itself or to the root")
        try:
            source_fd = os.dup(self.enter(source[:-1], make=False))
        except FileNotFoundError:
            raise PathRefusedError("hard link to a missing file") from None
        try:
            parent = self._cleared(parts)
            os.link(
                source[-1],
                parts[-1],
                src_dir_fd=source_fd,
                dst_dir_fd=parent,
                follow_symlinks=False,
            )
        except (FileNotFoundError, PermissionError):
            raise PathRefusedError("hard link to a missing file or a directory") from None
        finally:
            os.close(source_fd)

    def open_file(self, parts: Parts) -> int:
        """Descriptor (of the caller) to read a regular file of the tree.

        Raises: PathRefusedError (not a regular file, or not there).
        """
        try:
            parent = self.enter(parts[:-1], make=False)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(parts[-1], flags, dir_fd=parent)
        except OSError:
            raise PathRefusedError("no such regular file in the tree") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise PathRefusedError("no such regular file in the tree")
        return fd

    def drop(self, parts: Parts) -> None:
        """Remove what stands at a path, with all it holds, if it is there."""
        try:
            parent = self.enter(parts[:-1], make=False)
        except FileNotFoundError:
            return
        remove(parent, parts[-1])

    def _cleared(self, parts: Parts) -> int:
        if not parts:
            raise PathRefusedError("it would replace the root")
        parent = self.enter(parts[:-1])
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            try:
                os.rmdir(parts[-1], dir_fd=parent)
            except OSError:
                raise PathRefusedError("a directory stands there") from None
        return parent
