"""Whether symbolic links stay inside a tree."""

from __future__ import annotations

import errno
import os

from ramify.contracts.errors import TransferLimitError
from ramify.planes.sandbox.treefd import Parts

_MAX_HOPS = 40


def stays_inside(parts: Parts, target: bytes) -> bool:
    """Whether a link at `parts` to `target` stays in the tree as far as its text tells."""
    if target.startswith(b"/"):
        return False
    depth = len(parts) - 1
    for step in target.split(b"/"):
        if step == b"..":
            depth -= 1
            if depth < 0:
                return False
        elif step not in (b"", b"."):
            depth += 1
    return True


class LinkWalk:
    """Follows links of a finished tree by hand, link by link, and sees whether one leads outside.

    Args:
        root_fd: the root of the tree.
        budget: most steps in all; raises TransferLimitError beyond (links can be made to
            cost each other exponentially).
    """

    def __init__(self, root_fd: int, budget: int) -> None:
        self._root_fd, self._budget = root_fd, budget

    def stays_inside(self, parts: Parts) -> bool:
        """Whether the link at `parts` leads to a place in the tree; loops count as outside."""
        at = list(parts[:-1])
        todo = [parts[-1]]
        hops = 0
        while todo:
            step = todo.pop()
            self._budget -= 1
            if self._budget < 0:
                raise TransferLimitError("the tree's symbolic links are too tangled to check")
            if step in (b"", b"."):
                continue
            if step == b"..":
                if not at:
                    return False
                at.pop()
                continue
            at.append(step)
            try:
                target = os.readlink(b"/".join(at), dir_fd=self._root_fd)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    continue  # not a link, or nothing there: the path goes on as it is written
                return False
            at.pop()
            hops += 1
            if target.startswith(b"/") or hops > _MAX_HOPS:
                return False
            todo.extend(reversed(target.split(b"/")))
        return True
