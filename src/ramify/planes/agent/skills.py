"""Skills of a task: directories inside with a SKILL.md, told to the policy by name.

As in the Agent Skills specification: name and description stand in the front matter of SKILL.md
and are shown at once; the rest, and other files of the directory, the policy reads when it needs
them. All of it is text that came with the task: it is bounded, and marked as what it is.
"""

from __future__ import annotations

import html
import re
from typing import Any, NamedTuple, cast

import yaml

from ramify.contracts.config import SkillMode
from ramify.contracts.context import Context
from ramify.contracts.errors import EnvironmentFailed
from ramify.contracts.inside import inside
from ramify.contracts.sandbox import Sandbox
from ramify.planes.agent.session import agent_user, tail_text

_MOST = 64
_HEAD = 8192
"""Bytes of a SKILL.md in which its front matter must lie."""
_NAME, _DESCRIPTION = 64, 1024
"""Characters, as the specification limits them."""
_LIST_SEC = 30.0

# Of each skill: a line with its length, its path, then the head of the file.
_LIST = """cd {where} 2>/dev/null || exit 0
n=0
for f in */SKILL.md; do
  [ -f "$f" ] && [ "$n" -lt {most} ] || continue
  n=$((n+1))
  set -- $(head -c {head} "$f" | wc -c)
  printf '%s %s\\0' "$1" "${{f%/SKILL.md}}"
  head -c "$1" "$f"
done"""

_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_UNSEEN = re.compile(r"[\x00-\x1f\x7f]+")

_TEXT = """\
There are skills: directories of instructions for particular kinds of work, that came with the \
task. Before work that a description fits, read the skill's SKILL.md with `read`, and what it \
refers to as you need it (paths in it are relative to its directory).
<available_skills>
{skills}
</available_skills>"""


class Skill(NamedTuple):
    """A skill: what it is called, what it is for, and its SKILL.md inside."""

    name: str
    description: str
    path: str


async def find_skills(sandbox: Sandbox, ctx: Context) -> list[Skill]:
    """The skills that the agent may use, by directory name; none unless the mode is with-skill.

    A SKILL.md without a description in its front matter is no skill. At most 64 are listed.

    Raises: EnvironmentFailed (the directory cannot be listed), SandboxLostError.
    """
    package = ctx.task.package
    folder = package.skills_dir if package else None
    if folder is None or ctx.config.skill_mode is not SkillMode.WITH_SKILL:
        return []
    script = _LIST.format(where=inside(folder), most=_MOST, head=_HEAD)
    result = await sandbox.exec(
        script,
        user=agent_user(ctx),
        timeout_sec=_LIST_SEC,
        output_limit=_MOST * (_HEAD + 4096),
    )
    if not result.ok:
        raise EnvironmentFailed(f"cannot list the skills in {folder}: {tail_text(result)}")
    found: list[Skill] = []
    rest = result.stdout
    while b"\0" in rest:
        mark, _, rest = rest.partition(b"\0")
        length, _, name = mark.decode(errors="replace").partition(" ")
        if not length.isdecimal():
            break  # A file changed while it was read: what follows cannot be told apart.
        head, rest = rest[: int(length)], rest[int(length) :]
        if (skill := _skill(head, name, f"{folder.rstrip('/')}/{name}/SKILL.md")) is not None:
            found.append(skill)
    return found


def _skill(head: bytes, name: str, path: str) -> Skill | None:
    match = _FRONT.match(head.decode(errors="replace"))
    try:
        front: Any = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None  # Its author's mistake, which is nobody's failure here.
    if not isinstance(front, dict):
        return None
    fields = cast("dict[object, object]", front)
    description = _line(fields.get("description"), _DESCRIPTION)
    if not description:
        return None
    return Skill(_line(fields.get("name"), _NAME) or _line(name, _NAME), description, path)


def _line(value: object, limit: int) -> str:
    """A value of front matter as one line of text; empty where it is no text."""
    if not isinstance(value, str):
        return ""
    return " ".join(_UNSEEN.sub(" ", value).split())[:limit]


def skills_text(skills: list[Skill]) -> str:
    """What a policy is told of skills; empty where there are none."""
    if not skills:
        return ""
    parts = [
        f"<skill><name>{html.escape(skill.name, quote=False)}</name>"
        f"<description>{html.escape(skill.description, quote=False)}</description>"
        f"<location>{html.escape(_UNSEEN.sub(' ', skill.path), quote=False)}</location></skill>"
        for skill in skills
    ]
    return _TEXT.format(skills="\n".join(parts))
