"""Names what a Python of its own consists of, as JSON: standard library, Python 3.8 syntax.

Runs in a sandbox on the pristine image, where nobody has changed anything yet.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import sysconfig
from typing import Any


def _load_all(folder: str) -> None:
    """Import what is compiled, so that the libraries it needs are mapped."""
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            importlib.import_module(name.partition(".")[0])
        except Exception:  # one that needs more than this image has is of no use to tests either
            continue


def _names(path: str) -> list[str]:
    """All names that a library goes by in its directory."""
    folder = os.path.dirname(path)
    real = os.path.realpath(path)
    return [
        name
        for name in os.listdir(folder)
        if ".so" in name and os.path.realpath(os.path.join(folder, name)) == real
    ]


def main() -> None:
    """Print the interpreter, its standard library, its loader and its libraries."""
    stdlib = sysconfig.get_path("stdlib")
    _load_all(os.path.join(stdlib, "lib-dynload"))
    executable = os.path.realpath(sys.executable)
    libraries: dict[str, list[str]] = {}
    loader = ""
    with open("/proc/self/maps") as file:
        for line in file:
            path = line.split(None, 5)[5].strip() if len(line.split(None, 5)) == 6 else ""
            if not path.startswith("/") or path == executable or path.startswith(stdlib + "/"):
                continue
            if ".so" in path and path not in libraries:
                libraries[path] = sorted({os.path.basename(path), *_names(path)})
                if os.path.basename(path).startswith("ld-"):
                    loader = path
    found: dict[str, Any] = {
        "python": executable,
        "stdlib": stdlib,
        "version": f"python{sys.version_info[0]}.{sys.version_info[1]}",
        "libraries": libraries,
        "loader": loader,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
