"""A small world whose tasks are graded by an agent or a rubric, and graders for it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ramify.testing.scripted_model import Seen, Turn, call

EXPECTED = "42"
MANIFEST = """\
[environment]
name = "graded"
files = "files"
workdir = "/app"

[verifier]
hidden_from_agent = ["expectations.json"]
"""
TASK_TOML = """\
version = "1.0"
[environment]
network_mode = "no-network"
[verifier]
timeout_sec = 60.0
[ramify]
image_free = true
world = "../world/manifest.toml"
isolation = "workdir"
"""


def graded(
    place: Path,
    verifier: str,
    solve: str = "echo 42 > answer.txt\n",
    *,
    image: str | None = None,
    timeout_sec: float = 60.0,
) -> Path:
    """A task and its world below `place`; `verifier` are lines of the table `[verifier]`."""
    root = f'name = "graded"\nimage = "{image}"' if image else 'name = "graded"'
    for name, text in {
        "world/manifest.toml": MANIFEST.replace('name = "graded"', root) + verifier,
        "world/files/notes.txt": "notes\n",
        "world/files/expectations.json": json.dumps({"answer": EXPECTED}),
        "task/task.toml": TASK_TOML.replace("60.0", str(timeout_sec)),
        "task/instruction.md": "Write the answer to answer.txt.\n",
        "task/solution/solve.sh": solve,
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place / "task"


def verdict(seen: Seen, reward: float, **more: Any) -> str:
    """A verdict as the last prompt wants it."""
    asked = next(m.content for m in reversed(seen.messages) if m.role == "user")
    nonce = re.findall(r'"nonce": "(\w+)"', asked)[-1]
    return json.dumps({"nonce": nonce, "reward": reward, "reason": "as expected", **more})


def honest(seen: Seen) -> Turn:
    """Looks at what was expected and what was left, and compares."""
    if seen.turn == 0:
        return call("bash", command="cat /tests/expectations.json; echo; cat /app/answer.txt")
    expected = seen.quote(r'"answer": "(\w+)"')
    lines = seen.answers[-1].splitlines()
    right = expected in [line.strip() for line in lines[1:]]
    return verdict(seen, 1.0 if right else 0.0, items={"answer": float(right)})


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


async def ramify(*arguments: str, cwd: Path) -> Done:
    """The program, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ramify.cli.main", *arguments,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "RAMIFY_HOME": str(cwd / "home")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return Done(process.returncode or 0, out.decode(), err.decode())
