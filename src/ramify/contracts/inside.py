"""What agents and verifiers agree on about the inside of a sandbox: paths, and how to name them.

The provider that does not isolate (`bare`) keeps its "inside" in a directory of the host. It
maps paths given to `upload`, `download` and `cwd` itself; in a command line, where it cannot,
`$RAMIFY_ROOT` stands for that directory. Everywhere else the variable is unset, so that
`"$RAMIFY_ROOT"/tests` is `/tests`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

SOLUTION_DIR = "/solution"
"""Where the reference solution is put (oracle only)."""
TESTS_DIR = "/tests"
"""Where the tests are put, once the agent is done."""
VERIFIER_LOGS_DIR = "/logs/verifier"
"""Where the tests leave reward.json or reward.txt, and their logs."""
ARTIFACTS_DIR = "/logs/artifacts"
"""Where an agent may leave what is to be kept of its work, besides what a task declares."""

WORLD_FILE = "world.json"
"""What a world answers at the end (`Environment.query`): kept under this name in the rollout's
artifacts, and put below /tests for the verifier."""

_MAPPED = (SOLUTION_DIR, TESTS_DIR, VERIFIER_LOGS_DIR)
_SHELLS = "/bin/bash /usr/bin/bash /usr/local/bin/bash"


def inside(path: str) -> str:
    """An absolute path as one word of a `/bin/sh` command line, right in every provider."""
    return f'"$RAMIFY_ROOT"{shlex.quote(path)}'


def shell_line(argv: Sequence[str]) -> str:
    """The `/bin/sh` command line that becomes the program `argv`.

    Words below the directories of this module are named by `inside`. A first word `bash` is
    looked for where it is installed (never through PATH, which may lead to what an agent left
    there); `sh` takes its place where there is none.
    """
    words = [inside(word) if _is_mapped(word) else shlex.quote(word) for word in argv]
    if argv[0] != "bash":
        return f"exec {' '.join(words)}"
    rest = " ".join(words[1:])
    return f'for s in {_SHELLS}; do [ -x "$s" ] && exec "$s" {rest}; done; exec /bin/sh {rest}'


def _is_mapped(word: str) -> bool:
    return any(word == root or word.startswith(f"{root}/") for root in _MAPPED)
