"""Look at links, modes and files outside the work directory. Needs the level `filesystem`."""

import os
import stat
from pathlib import Path

ROOT = os.environ.get("RAMIFY_ROOT", "")
NOTES = Path(f"{ROOT}/opt/notes")


def link(name: str) -> str:
    path = NOTES / name
    return os.path.normpath(path.readlink()) if path.is_symlink() else "not a link"


def text(path: Path) -> str:
    regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 10_000
    return path.read_bytes().decode(errors="replace") if regular else "not a file"


def checks() -> dict[str, bool]:
    programs = {release: NOTES / "releases" / release / "bin/notes" for release in ("1.0", "2.0")}
    result = {
        "current": link("current") == "releases/2.0",
        "previous": link("previous") == "releases/1.0",
        "conf": text(Path(f"{ROOT}/etc/notes.conf")).split()
        == ["user=notes", "release=2.0", "keep=5"],
    }
    for release, program in programs.items():
        kept = text(program) == f'#!/bin/sh\necho "notes {release}"\n'
        executable = kept and stat.S_IMODE(program.stat().st_mode) & 0o111 == 0o111
        result[f"program {release}"] = executable
    return result


def main() -> None:
    try:
        result = checks()
    except OSError as error:
        result = {str(error): False}
    logs = Path(f"{ROOT}/logs/verifier")
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "reward.txt").write_text("1\n" if all(result.values()) else "0\n")
    print("failed:", [name for name, ok in result.items() if not ok])


main()
