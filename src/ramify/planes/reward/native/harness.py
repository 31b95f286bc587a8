"""What our runner of tests consists of, laid out on the host before it goes into a sandbox."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ramify.contracts.inside import WORLD_FILE

HARNESS_DIR = "/ramify-verifier"
"""Where the runner lies inside."""
SESSION, CALLEE = f"{HARNESS_DIR}/session.py", f"{HARNESS_DIR}/callee.py"
TESTS_UID, CODE_UID = 61001, 61002
"""The user that the tests run as, and the user of the code in isolated calls."""
TESTS_USER, CODE_USER = f"{TESTS_UID}:{TESTS_UID}", f"{CODE_UID}:{CODE_UID}"
TESTS_OWNER = f"0:{TESTS_UID}"
"""Owner of the tests: nobody who runs inside can change them, and only their user reads them."""

SOURCES = Path(__file__).parent / "inside"
"""Where the programs lie in this package."""
_PROGRAMS = ("session.py", "callee.py", "ramify_tests.py")
_CALLS_MODULE = b"ramify_tests"


def lay_harness(folder: Path) -> None:
    """Put the programs into an empty directory, readable by all."""
    folder.chmod(0o755)
    for name in _PROGRAMS:
        (folder / name).write_bytes((SOURCES / name).read_bytes())
        (folder / name).chmod(0o644)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "pytest.ini").chmod(0o644)


def lay_tests(tests: Path, more: Mapping[str, str], world: Path | None, folder: Path) -> bool:
    """Copy the tests, and `more` files among them, into an empty directory, closed to others.

    Returns whether one of the files names the module of isolated calls.
    """
    shutil.copytree(tests, folder, symlinks=True, dirs_exist_ok=True)
    for name, text in more.items():
        (folder / name).write_text(text)
    if world is not None and not (folder / WORLD_FILE).exists():
        shutil.copyfile(world, folder / WORLD_FILE)
    calls = False
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        executable = path.is_dir() or path.stat().st_mode & 0o111
        path.chmod(0o550 if executable else 0o440)
        if path.suffix == ".py" and not calls:
            calls = _CALLS_MODULE in path.read_bytes()
    return calls
