"""What the `isolated` profile changes about the run of a test script of another format."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from ramify.contracts.inside import inside
from ramify.contracts.sandbox import Sandbox

HOME_DIR = "/logs/home"
"""The home of isolated tests: emptied before they start, and theirs."""

_UNSET = (
    *("BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONHOME", "NODE_OPTIONS", "PERL5OPT", "RUBYOPT"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"),
)
_SAFE_PATH_SINCE = (3, 11)
_VERSION = re.compile(rb"(\d{1,3}) (\d{1,3})\n")
_ASK_SEC = 10.0
_ANSWER_BYTES = 64
# Plugins of pytest stay: who can plant one where it is found can replace pytest itself there, and
# scripts that want `--ctrf` need theirs. The global configuration of git is the empty home's;
# `git config --global` as root would rename a file over /dev/null, were it that.
_SET = {
    "PYTHONSAFEPATH": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "core.fsmonitor",
    "GIT_CONFIG_VALUE_0": "false",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": "/dev/null",
}


def isolated_env(given: Mapping[str, str], workdir: str) -> dict[str, str]:
    """Variables of isolated tests; `given` are those of the sandbox.

    Of a PYTHONPATH stays what lies outside the work directory. A Python before 3.11 does not know
    PYTHONSAFEPATH (`python_gap`).
    """
    root = posixpath.normpath(workdir)
    entries = [posixpath.normpath(each) for each in given.get("PYTHONPATH", "").split(":") if each]
    kept = [e for e in entries if posixpath.isabs(e) and e != root and not e.startswith(f"{root}/")]
    return {**_SET, "PYTHONPATH": ":".join(kept)}


def isolated_line(line: str, declared: Mapping[str, str]) -> str:
    """The command line `line` in an empty home, without start-up files but `declared` ones."""
    gone = " ".join(name for name in _UNSET if name not in declared)
    home = "" if "HOME" in declared else f"export HOME={inside(HOME_DIR)}; "
    return f"unset {gone}; {home}{line}"


async def python_gap(sandbox: Sandbox) -> str:
    """What `python3` of the sandbox, as it says of itself, leaves open under `isolated`; or ""."""
    asked = await sandbox.exec(
        ["python3", "-c", "import sys; print(*sys.version_info[:2])"],
        cwd="/",
        timeout_sec=_ASK_SEC,
        output_limit=_ANSWER_BYTES,
        kill_leftovers=True,
    )
    found = _VERSION.fullmatch(asked.stdout)
    if not asked.ok or found is None:  # it has no Python, or none that could say
        return ""
    version = (int(found[1]), int(found[2]))
    if version >= _SAFE_PATH_SINCE:
        return ""
    return (
        f"Python {version[0]}.{version[1]} imports from the work directory: "
        "PYTHONSAFEPATH has no effect before 3.11"
    )
