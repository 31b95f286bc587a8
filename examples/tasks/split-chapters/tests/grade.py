"""Compare the directory of chapters, name by name and byte by byte."""

import json
import os
from pathlib import Path

ROOT = os.environ.get("RAMIFY_ROOT", "")
CHAPTERS = Path("chapters")


def found() -> dict[str, bytes]:
    if CHAPTERS.is_symlink() or not CHAPTERS.is_dir():
        return {}
    entries = sorted(CHAPTERS.iterdir())[:100]
    regular = [entry for entry in entries if entry.is_file() and not entry.is_symlink()]
    if regular != entries:
        return {}
    contents: dict[str, bytes] = {}
    for entry in entries:
        with entry.open("rb") as file:
            contents[entry.name] = file.read(100_000)
    return contents


def main() -> None:
    text: dict[str, str] = json.loads(Path(f"{ROOT}/tests/expected.json").read_bytes())
    expected = {name: content.encode() for name, content in text.items()}
    given = found()
    wrong = sorted(n for n in {*given, *expected} if given.get(n) != expected.get(n))
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text("0\n" if wrong else "1\n")
    print("wrong or missing:", wrong)


main()
