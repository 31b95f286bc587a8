"""What a mask hides of a directory of the host, and what is mounted below. Standard library."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from ramify.planes.sandbox.local import namespaces as ns

_ESCAPED = re.compile(r"\\([0-7]{3})")


def mounts_below(place: str) -> list[str]:
    """The mount points below a directory, as this process sees them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        points = [line.split()[4] for line in lines]
    points = [_ESCAPED.sub(lambda found: chr(int(found[1], 8)), point) for point in points]
    return sorted({point for point in points if point.startswith(f"{place.rstrip('/')}/")})


def whiteouts(mask: str) -> Iterator[str]:
    """The paths in a layer that hide what lies below it."""
    for place, _, names in os.walk(mask):
        for path in (os.path.join(place, name) for name in names):
            info = os.lstat(path)
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                yield path


def show_read_only(source: str, mask: str, target: str) -> None:
    """Show a directory, read-only, but nothing that its mask hides or that is mounted below it."""
    ns.bind_read_only(source, target)
    hidden = [target + path[len(mask) :] for path in whiteouts(mask)]
    for path in [*mounts_below(target), *hidden]:
        if os.path.isdir(path):
            ns.mount("tmpfs", path, "tmpfs", ns.MS_RDONLY | ns.MS_NOSUID | ns.MS_NODEV, "size=0")
        elif os.path.lexists(path):
            ns.mount("/dev/null", path, flags=ns.MS_BIND)
