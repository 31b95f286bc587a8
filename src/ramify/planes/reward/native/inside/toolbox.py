"""Copies a Python, with all it needs, into a directory: standard library, Python 3.8 syntax.

Runs in a sandbox on the pristine image, where nobody has changed anything yet. Prints, as JSON,
where packages lie that the copy does not have.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import site
import sys
import sysconfig

_LEFT_OUT = (
    *("test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo", "tkinter", "pydoc_data"),
    *("site-packages", "dist-packages", "config-*", "*.a", "*.opt-1.pyc", "*.opt-2.pyc"),
)


def _load_all(folder: str) -> None:
    """Import what is compiled, so that the libraries it needs are mapped."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            importlib.import_module(name.partition(".")[0])
        except Exception:  # one that needs more than this image has is of no use to tests either
            continue


def _libraries() -> list[str]:
    found: dict[str, None] = {}
    with open("/proc/self/maps") as file:
        for line in file:
            fields = line.split(None, 5)
            path = fields[5].strip() if len(fields) == 6 else ""
            if path.startswith("/") and ".so" in path and "/lib-dynload/" not in path:
                found[path] = None
    return list(found)


def _copy_library(path: str, folder: str) -> None:
    """Under all names that it goes by in its directory."""
    real = os.path.realpath(path)
    around = os.path.dirname(path)
    names = [
        name
        for name in os.listdir(around)
        if ".so" in name and os.path.realpath(os.path.join(around, name)) == real
    ]
    for name in {os.path.basename(path), *names}:
        shutil.copyfile(path, os.path.join(folder, name))


def main() -> None:
    """Make the copy in the directory that the first argument names."""
    top = sys.argv[1]
    stdlib = sysconfig.get_path("stdlib")
    _load_all(os.path.join(stdlib, "lib-dynload"))
    for name in ("bin", "so"):
        os.makedirs(os.path.join(top, name))
    shutil.copyfile(os.path.realpath(sys.executable), os.path.join(top, "bin", "python3"))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copytree(
        stdlib,
        os.path.join(top, "lib", version),
        ignore=shutil.ignore_patterns(*_LEFT_OUT),
        ignore_dangling_symlinks=True,
    )
    for path in _libraries():
        _copy_library(path, os.path.join(top, "so"))
        if os.path.basename(path).startswith("ld-"):
            shutil.copyfile(path, os.path.join(top, "bin", "loader"))
    sys.stdout.write(json.dumps(site.getsitepackages()) + "\n")


if __name__ == "__main__":
    main()
