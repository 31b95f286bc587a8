"""A new task directory that works: `ramify tasks init`."""

from __future__ import annotations

import re
from pathlib import Path

from ramify.contracts.errors import ConfigError

_TASK_TOML = """\
schema_version = "1.4"

[task]
name = "example/@NAME@"

[metadata]
difficulty = "easy"

[agent]
timeout_sec = 300

[verifier]
timeout_sec = 60

[environment]
docker_image = "python:3.12-slim"
workdir = "/app"
network_mode = "no-network"

# Ramify's additions to the format; other engines ignore this table.
[ramify]
image_free = true              # may also run on the host's root, read-only below an overlay
files = "environment/files"    # copied into the work directory before the agent comes
outputs = ["total.txt"]        # what the agent hands in; all that the verifier sees of its work
needs = ["sh", "awk"]
"""

_INSTRUCTION = """\
The work directory holds `numbers.txt`, one integer per line.

Write the sum of all of them to `total.txt` in the work directory, as one integer.
"""

_NUMBERS = "12\n7\n-3\n26\n"

_TEST = """\
#!/bin/sh
# Starts in the work directory. RAMIFY_ROOT is empty unless the sandbox has no root of its own.
# The expected value stands here, where the agent never looks, not in a file that it could change.
logs="$RAMIFY_ROOT/logs/verifier"
mkdir -p "$logs"
answer=$(head -c 100 total.txt | tr -d '[:space:]')
if [ "$answer" = "42" ]; then
    echo 1 > "$logs/reward.txt"
else
    echo "total.txt says '$answer', expected 42"
    echo 0 > "$logs/reward.txt"
fi
"""

_SOLVE = """\
#!/bin/sh
# The reference solution: `ramify tasks check` runs it and expects reward 1.
set -e
awk '{ sum += $1 } END { print sum }' numbers.txt > total.txt
"""

_FILES = {
    "task.toml": _TASK_TOML,
    "instruction.md": _INSTRUCTION,
    "environment/files/numbers.txt": _NUMBERS,
    "tests/test.sh": _TEST,
    "solution/solve.sh": _SOLVE,
}


def init_task(path: Path, name: str) -> Path:
    """Write a small working task called `name` into the directory `path`, and return it resolved.

    Its reference solution scores 1 and doing nothing scores 0; edit it from there. The item id of
    a task is the name of its directory.

    Raises:
        ConfigError: a name that cannot be an item id, or `path` is neither new nor empty.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(
            f"{name!r} cannot name a task; use letters, digits and . _ -", field="name"
        )
    root = path.resolve()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise ConfigError("exists already; choose a new directory", file=str(path))
    for relative, text in _FILES.items():
        target = root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("@NAME@", name))
        target.chmod(0o755 if relative.endswith(".sh") else 0o644)
    return root
