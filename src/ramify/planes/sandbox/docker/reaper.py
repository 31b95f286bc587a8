"""Removes what runs for an engine that was killed. A program, standard library only.

    python -I -S reaper.py FD ADDRESS ENGINE

A container that runs ends with its engine by itself. One that was created and not yet started has
nobody inside who could notice, and the daemon may still be making it when the engine dies; hence
this process, which outlives the engine by about a second. It also ends the services of Compose
projects, and removes their networks and volumes. It waits on FD: a byte means that all was removed
and it may go; end of file means that the engine died.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
import time
from typing import Any
from urllib.parse import quote, urlsplit

_LINGER_SEC = 1.0
"""How long after the engine's death a container may still come into being."""
_GIVE_UP_SEC = 60.0
_CALL_SEC = 20.0


class _Unix(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=_CALL_SEC)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_CALL_SEC)
        self.sock.connect(self._path)


def _call(address: str, method: str, path: str) -> bytes:
    parts = urlsplit(address)
    if parts.scheme == "unix":
        link: http.client.HTTPConnection = _Unix(parts.path)
    else:
        link = http.client.HTTPConnection(
            parts.hostname or "localhost", parts.port, timeout=_CALL_SEC
        )
    try:
        link.request(method, path)
        return link.getresponse().read()
    finally:
        link.close()


def _listed(address: str, engine: str) -> set[str]:
    """Paths of what is left: containers first; networks and volumes once these are gone."""
    own = f"ramify.engine={engine}"
    found = _get(address, "/containers/json?all=1&", [own])
    if found:
        return {f"/containers/{item['Id']}?force=1&v=1" for item in found}
    # Other volumes of an engine are not its alone.
    volumes: Any = _get(address, "/volumes?", [own, "ramify.world"])["Volumes"] or ()
    networks = _get(address, "/networks?", [own])
    left = {f"/volumes/{item['Name']}" for item in volumes}
    return left | {f"/networks/{item['Id']}" for item in networks}


def _get(address: str, path: str, labels: list[str]) -> Any:
    filters = quote(json.dumps({"label": labels}))
    return json.loads(_call(address, "GET", f"{path}filters={filters}"))


def _remove(address: str, path: str) -> None:
    try:
        _call(address, "DELETE", path)
    except (OSError, http.client.HTTPException):
        return  # it is listed again, and tried again, if it is still there


def _reap(address: str, engine: str) -> None:
    died = time.monotonic()
    asked: dict[str, threading.Thread] = {}
    while (passed := time.monotonic() - died) < _GIVE_UP_SEC:
        try:
            left = _listed(address, engine)
        except (OSError, ValueError, http.client.HTTPException):
            left = {"unknown"}  # the daemon may be on its way back
        if not left and passed > _LINGER_SEC:
            return
        for path in left - {"unknown"}:
            if path not in asked or not asked[path].is_alive():
                asked[path] = threading.Thread(target=_remove, args=(address, path), daemon=True)
                asked[path].start()
        time.sleep(0.1)


def _main(fd: int, address: str, engine: str) -> None:
    if not os.read(fd, 1):
        _reap(address, engine)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
