"""Copies a Python, with all it needs, into a directory: standard library, Python 3.8 syntax.

Runs in a sandbox on the pristine image, where nobody has changed anything yet. The copy is few
files: what is written in Python lies compiled in one archive, which Python imports from by itself.
Prints a JSON object: `packages`, where packages lie that the copy does not have, and `sources`,
path, size and time of change (ns) of each file that was copied.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import marshal
import os
import shutil
import site
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from importlib.machinery import SourceFileLoader
from typing import Any

_LEFT_OUT = (
    *("test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "tkinter", "pydoc_data"),
    *("site-packages", "dist-packages", "config-*", "__pycache__", "lib-dynload"),
)
_NO_USE = ("_test*", "_ctypes_test*", "_xxtest*", "xxlimited*", "_tkinter*")
_STORED = ("encodings/", "codecs.py", "io.py", "abc.py")
"""Imported before anything can be decompressed."""
_UNCHECKED = (1).to_bytes(4, "little") + bytes(8)
"""What follows the magic number of code whose source is not looked at."""


def _load_all(folder: str) -> None:
    """Import what is compiled, so that the libraries it needs are mapped."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        if _is_one(name, _NO_USE):
            continue
        try:
            importlib.import_module(name.partition(".")[0])
        except Exception:  # one that needs more than this image has is of no use to tests either
            continue


def _is_one(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _libraries() -> list[str]:
    found: dict[str, None] = {}
    with open("/proc/self/maps") as file:
        for line in file:
            fields = line.split(None, 5)
            path = fields[5].strip() if len(fields) == 6 else ""
            if path.startswith("/") and ".so" in path and "/lib-dynload/" not in path:
                found[path] = None
    return list(found)


class _Copy:
    """The copy that is being made, and what it was made from."""

    def __init__(self, top: str) -> None:
        self._top = top
        self._sources: dict[str, tuple[int, int]] = {}

    @property
    def sources(self) -> list[tuple[str, int, int]]:
        return [(path, *stamp) for path, stamp in self._sources.items()]

    def place(self, *names: str) -> str:
        path = os.path.join(self._top, *names)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def note(self, path: str) -> None:
        info = os.stat(path)
        self._sources[path] = (info.st_size, info.st_mtime_ns)

    def file(self, path: str, *names: str) -> None:
        self.note(path)
        shutil.copyfile(path, self.place(*names))

    def library(self, path: str) -> None:
        """Under all names that it goes by in its directory."""
        real = os.path.realpath(path)
        around = os.path.dirname(path)
        name = os.path.basename(path)
        self.file(real, "so", name)
        for other in os.listdir(around):
            same = ".so" in other and os.path.realpath(os.path.join(around, other)) == real
            if same and not os.path.lexists(self.place("so", other)):
                os.symlink(name, self.place("so", other))

    def modules(self, stdlib: str, *names: str) -> None:
        """What is written in Python, compiled, in one archive."""
        can = importlib.util.find_spec("zlib") is not None
        most = zipfile.ZIP_DEFLATED if can else zipfile.ZIP_STORED
        with zipfile.ZipFile(self.place(*names), "w") as archive:
            for path in sorted(_python_files(stdlib)):
                name = os.path.relpath(path, stdlib)
                try:
                    code = SourceFileLoader("module", path).get_code("module")
                except SyntaxError:  # a template of a module; nobody can import it in the image
                    continue
                self.note(path)
                data = importlib.util.MAGIC_NUMBER + _UNCHECKED
                data += marshal.dumps(_named(code, f"<{name}>"))
                entry = zipfile.ZipInfo(f"{name}c")
                entry.compress_type = zipfile.ZIP_STORED if name.startswith(_STORED) else most
                archive.writestr(entry, data)


def _python_files(stdlib: str) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(stdlib):
        folders[:] = [name for name in folders if not _is_one(name, _LEFT_OUT)]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py")]
    return found


def _named(code: Any, name: str) -> Any:
    """Code that says it is of this file: where it came from, an agent may have put something."""
    inner = tuple(_named(c, name) if isinstance(c, type(code)) else c for c in code.co_consts)
    return code.replace(co_filename=name, co_consts=inner)


def main() -> None:
    """Make the copy in the directory that the first argument names."""
    stdlib = sysconfig.get_path("stdlib")
    lib, version = getattr(sys, "platlibdir", "lib"), os.path.basename(stdlib)
    dynload = os.path.join(stdlib, "lib-dynload")
    copy = _Copy(sys.argv[1])
    _load_all(dynload)
    copy.file(os.path.realpath(sys.executable), "bin", "python3")
    for name in os.listdir(dynload) if os.path.isdir(dynload) else []:
        if ".so" in name and not _is_one(name, _NO_USE):
            copy.file(os.path.join(dynload, name), lib, version, "lib-dynload", name)
    copy.modules(stdlib, lib, version.replace(".", "") + ".zip")
    copy.file(os.path.join(stdlib, "os.py"), lib, version, "os.py")  # by it Python finds itself
    for path in _libraries():
        copy.library(path)
        if os.path.basename(path).startswith("ld-"):
            copy.file(path, "bin", "loader")
    found = {"packages": site.getsitepackages(), "sources": copy.sources}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
