"""The office's tasks, graded on services run by hand: 1 for the solution, 0 for all else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from office_stand import OFFICE, Office

# The services tell their own state to root alone.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the office's own routes are root's")

TASKS = OFFICE / "tasks"
NAMES = sorted(path.name for path in TASKS.iterdir())

_WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "schedule-review": {
        "on Monday": ("product((10, 12, 13)", "product((9, 10, 12, 13)"),
        "in a room that is too small for the rest of the week": ("(10, 12, 13)", "(12, 13)"),
        "without reading who is busy": (
            " and not any(busy[p] for p in people):\n        break",
            ":\n        break",
            'event | {"room"',
            'event | {"allow_conflicts": True, "room"',
        ),
        "answered in a new thread": (
            'call("mail", "POST", f"/messages/{request[\'id\']}/reply", answer)',
            'call("mail", "POST", "/messages", {"to": people[1:2], "subject": "Re: Q1 churn '
            'review", "body": answer["body"]})',
        ),
    },
    "triage-inbox": {
        "forwarded the confidential letter and cleaned up": (
            '        call("mail", "PATCH", path, {"add_labels": ["confidential"]})',
            '        fay = {"to": ["fay@north.example"]}\n'
            '        sent = call("mail", "POST", f"{path}/forward", fay)\n'
            '        call("mail", "DELETE", f"/messages/{sent[\'id\']}")\n'
            '        call("mail", "DELETE", f"/messages/{sent[\'id\']}")\n'
            '        call("mail", "PATCH", path, {"add_labels": ["confidential"]})',
        ),
        "took the word for the thing": (
            "f\",{message['from']}\\n\" in suppliers",
            '"invoice" in (message["subject"] + body).lower()',
        ),
        "copied the confidential letter by hand": (
            '        call("mail", "PATCH", path, {"add_labels": ["confidential"]})',
            '        call("mail", "POST", "/messages", {"to": ["fay@north.example"],'
            ' "subject": "x", "body": body})\n'
            '        call("mail", "PATCH", path, {"add_labels": ["confidential"]})',
        ),
    },
    "publish-policy": {
        "deleted and made anew": (
            'call("files", "PUT", f"/files/{policy[\'id\']}/content", text.encode())',
            'call("files", "DELETE", f"/nodes/{policy[\'id\']}")\n'
            'above = call("files", "GET", "/resolve?path=/Operations")["id"]\n'
            'policy = call("files", "POST", f"/files?parent={above}&name=travel-policy.md",'
            " text.encode())",
        ),
        "public for a moment": (
            'call("files", "PATCH", f"/nodes/{policy[\'id\']}", {"link": "organisation"})',
            'call("files", "PATCH", f"/nodes/{policy[\'id\']}", {"link": "public"})\n'
            'call("files", "PATCH", f"/nodes/{policy[\'id\']}", {"link": "organisation"})',
        ),
        "without the correction": ('.replace("46 EUR", "64 EUR")', ""),
        "outside the thread": (', "thread": channel["pins"][0]', ""),
    },
    "reconcile-offsite": {
        "the bus too, which Ari did not tick": (
            'call("calendar", "DELETE"',
            'call("calendar", "PATCH", event("bus"), {"start": "2026-03-27T07:30:00Z"})\n'
            'call("calendar", "DELETE"',
        ),
        "the first decision about dinner": ("T19:30", "T18:30"),
        "cancelled and entered anew": (
            'call("calendar", "PATCH", event("dinner"), times)',
            'call("calendar", "DELETE", event("dinner"))\n'
            'new = {"title": "Offsite dinner", "attendees": channel["members"]}\n'
            'call("calendar", "POST", "/events", new | times)',
        ),
    },
    "close-falcon": {
        "touched the held thread and put it back": (
            'tmp = call("files"',
            "held = call('mail', 'GET', '/messages?from=eli@north.example&label=falcon')\n"
            "for m in held['items']:\n"
            "    for folder in ('trash', m['folder']):\n"
            "        call('mail', 'PATCH', f\"/messages/{m['id']}\", {'folder': folder})\n"
            'tmp = call("files"',
        ),
        "the held thread as well": (
            'm["from"] == "eli@north.example" and "Legal hold" in m["body"]',
            'm["from"] == "nobody"',
        ),
        "the whole folder": ("/Operations/Falcon/tmp", "/Operations/Falcon"),
        "for good": (
            '        call("mail", "PATCH", f"/messages/{message[\'id\']}", {"folder": "trash"})',
            '        call("mail", "DELETE", f"/messages/{message[\'id\']}")\n'
            '        call("mail", "DELETE", f"/messages/{message[\'id\']}")',
        ),
    },
}


def solution(name: str) -> str:
    return (TASKS / name / "solution" / "solve.sh").read_text()


def run(script: Path, office: Office) -> str:
    done = subprocess.run(
        ["bash", str(script)], cwd=office.root, env=office.env, capture_output=True, timeout=100
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def reward(name: str, text: str, root: Path) -> tuple[float, str]:
    """Run a solution in a fresh office, then the tests as the task has them."""
    office = Office(root, name)
    try:
        script = root / "solve.sh"
        script.write_text(text)
        run(script, office)
        shutil.copytree(OFFICE / "world" / "office_grader", root / "tests" / "office_grader")
        shutil.copytree(TASKS / name / "tests", root / "tests", dirs_exist_ok=True)
        said = run(root / "tests" / "test.sh", office)
        return float((root / "logs" / "verifier" / "reward.txt").read_text()), said
    finally:
        office.close()


def test_every_task_has_wrong_solutions_here() -> None:
    assert sorted(_WRONG) == NAMES
    assert all(len(wrong) >= 2 for wrong in _WRONG.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_scores_one(name: str, tmp_path: Path) -> None:
    got, said = reward(name, solution(name), tmp_path)
    assert got == 1, said


@pytest.mark.parametrize("name", NAMES)
def test_doing_nothing_scores_zero(name: str, tmp_path: Path) -> None:
    assert reward(name, "true\n", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name in NAMES for what in sorted(_WRONG[name])]
)
def test_a_plausible_mistake_scores_zero(name: str, what: str, tmp_path: Path) -> None:
    parts = _WRONG[name][what]
    text = solution(name)
    for old, new in zip(parts[::2], parts[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    got, said = reward(name, text, tmp_path)
    assert got == 0, said
    assert said.strip()


@pytest.mark.parametrize("name", NAMES)
def test_right_and_something_else_scores_zero(name: str, tmp_path: Path) -> None:
    more = 'call("mail", "POST", "/labels", {"name": "done"})\nEND\n'
    assert reward(name, solution(name).replace("END\n", more), tmp_path)[0] == 0
