"""Compare the whole work directory with the expected one (hidden names do not matter)."""

import json
import os
from pathlib import Path

ROOT = os.environ.get("RAMIFY_ROOT", "")


def found() -> dict[str, str]:
    files: dict[str, str] = {}
    for folder, folders, names in os.walk("."):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.is_symlink() or not path.is_file() or path.stat().st_size > 10_000:
                return {}
            files[path.as_posix()] = path.read_bytes().decode(errors="replace")
        if not folders and not names and folder != ".":
            files[f"{folder}/"] = "(an empty directory)"
    return files


def main() -> None:
    expected: dict[str, str] = json.loads(Path(f"{ROOT}/tests/expected.json").read_bytes())
    given = found()
    wrong = sorted(n for n in {*given, *expected} if given.get(n) != expected.get(n))
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text("0\n" if wrong else "1\n")
    print("not as expected:", wrong)


main()
