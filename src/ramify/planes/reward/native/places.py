"""Where a sandbox has its programs, and which of these places may be an agent's."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence

from ramify.contracts.context import Context
from ramify.contracts.task import TaskPackage
from ramify.planes.reward.stage import has_own_image

_USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOL_ROOTS = (
    *("/bin", "/sbin", "/lib", "/lib64", "/etc", "/usr/bin", "/usr/sbin", "/usr/lib"),
    *("/usr/lib64", "/usr/local/bin", "/usr/local/sbin", "/usr/local/lib"),
)


def program_path(ctx: Context, package: TaskPackage, carried: Sequence[str]) -> str:
    """The pristine image's PATH without what the agent's work may have put there.

    `carried` are paths inside whose content is the agent's, besides the work directory.
    """
    image = None if has_own_image(package) else ctx.image
    own = image.env.get("PATH", _USUAL_PATH) if image else _USUAL_PATH
    theirs = [ctx.workdir, *carried]
    places = [p for p in own.split(":") if p.startswith("/") and not _overlap(p, theirs)]
    return ":".join(places) or _USUAL_PATH


def interpreters(ctx: Context, package: TaskPackage, carried: Sequence[str]) -> str:
    """Where the Python that runs the tests may be, the first choice first; words of `/bin/sh`."""
    grading = package.verifier.grading
    if grading is not None and grading.python is not None:
        return shlex.quote(grading.python)
    path = program_path(ctx, package, carried)
    return " ".join(shlex.quote(f"{place}/python3") for place in path.split(":"))


def holds_tools(carried: Sequence[str], python: str | None) -> bool:
    """Whether the interpreter or its libraries may lie in one of these places."""
    roots = (*_TOOL_ROOTS, *([python] if python else []))
    return any(_overlap(place, carried) for place in roots)


def _overlap(place: str, others: Sequence[str]) -> bool:
    """Whether a path lies in one of the others, or one of them in it."""
    one = posixpath.join(posixpath.normpath(place), "")
    for other in others:
        two = posixpath.join(posixpath.normpath(other), "")
        if one.startswith(two) or two.startswith(one):
            return True
    return False
