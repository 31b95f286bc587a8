"""The directory of a run, what of it steps see, and the variables that lead them there.

```
ARTIFACT_DIR/
├── runs/{run_id}/
│   ├── manifest.json         written last; a run without one did not end
│   ├── logs/                 combined.log, step-01-install.log, ...
│   ├── build/                $VERIFIER_OUTPUTS, and the declared artifacts
│   ├── tmp/                  /tmp and $TMPDIR
│   ├── db/ snapshots/ junit/ $TEST_DB_PATH, $SNAPSHOT_DIR, $JUNIT_DIR
│   └── .work/                home, cache and what steps write over the repository; removed
└── cache/                    build caches, where the pipeline asks for one
```

Steps can write to `build`, `tmp`, `db`, `snapshots`, `junit` and two directories of `.work`,
never to the logs or the manifest.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import Mount

INSIDE = "/artifacts"
_KEPT = ("build", "tmp", "db", "snapshots", "junit")
_WORK = ".work"
_PASSING = ("home", "cache")
_SLUG = re.compile(r"[^a-z0-9._-]+")
_SLUG_MAX = 48


def artifact_root(given: Path | None, environment: Mapping[str, str]) -> Path:
    """ARTIFACT_DIR: as given, else `$AGENT_ARTIFACT_DIR`, else `~/.agent-artifacts`."""
    named = environment.get("AGENT_ARTIFACT_DIR")
    return (given or Path(named or "~/.agent-artifacts").expanduser()).absolute()


def new_run_id(now: float) -> str:
    """A unique id that sorts by time; `now` is UTC seconds since the epoch."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    return f"{stamp}-{secrets.token_hex(4)}"


class RunDirectory:
    """The directory of one run.

    Args:
        root: ARTIFACT_DIR.
        run_id: unique.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        try:
            (root / "runs").mkdir(parents=True, exist_ok=True)
            (root / "cache").mkdir(exist_ok=True)
            self.root = root.resolve()
            self.path = self.root / "runs" / run_id
            self.path.mkdir()
            (self.path / "logs").mkdir()
            self.work.mkdir(mode=0o711)
        except OSError as error:
            raise ConfigError(
                f"the artifact directory cannot be written: {error.strerror}; give another with "
                "AGENT_ARTIFACT_DIR",
                str(error.filename or root),
            ) from error

    @property
    def work(self) -> Path:
        """What is removed at the end."""
        return self.path / _WORK

    @property
    def logs(self) -> Path:
        """Where the logs are; steps do not see it."""
        return self.path / "logs"

    def source(self, name: str) -> Path:
        """The directory that steps see as /artifacts/`name`."""
        return (self.work if name in _PASSING else self.path) / name

    def furnish(self, owner: tuple[int, int] | None) -> None:
        """Make the directories that steps write to, for the user they run as. Raises: OSError."""
        for name in (*_KEPT, *_PASSING):
            place = self.source(name)
            place.mkdir(mode=0o755)
            if owner is not None:
                os.chown(place, *owner)
        self.source("tmp").chmod(0o1777)

    def mounts(self) -> tuple[Mount, ...]:
        """What steps see of it; /tmp comes first, so that nothing else is hidden behind it."""
        places = {"/tmp": "tmp", **{f"{INSIDE}/{name}": name for name in (*_KEPT, *_PASSING)}}
        return tuple(Mount(str(self.source(n)), target, "rw") for target, n in places.items())

    def clear(self) -> None:
        """Remove what is of no use after the run. Blocks; raises OSError."""
        _remove(self.work)


def _remove(place: Path) -> None:
    """Remove a tree that steps wrote: whatever its modes, and without following links."""

    def unlock(_function: object, path: str, _error: object) -> None:
        with suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            if os.path.isdir(path) and not os.path.islink(path):
                os.chmod(path, 0o700)
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    shutil.rmtree(place, onerror=unlock)


def log_names(names: list[str]) -> list[str]:
    """File names of the steps' logs: `step-01-install.log`, in order, all different."""
    width = max(2, len(str(len(names))))
    found: list[str] = []
    for number, name in enumerate(names, 1):
        slug = _SLUG.sub("-", name.lower()).strip("-.")[:_SLUG_MAX] or "step"
        found.append(f"step-{number:0{width}d}-{slug}.log")
    return found


def redirects(repo: str) -> dict[str, str]:
    """Variables that lead temporary files, caches, databases and reports out of the repository."""
    tmp, home, cache = f"{INSIDE}/tmp", f"{INSIDE}/home", f"{INSIDE}/cache"
    return {
        "HOME": home,
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP", "VERIFIER_TMPDIR", "GOTMPDIR"), tmp),
        "TEST_DB_PATH": f"{INSIDE}/db",
        "SNAPSHOT_DIR": f"{INSIDE}/snapshots",
        "JUNIT_DIR": f"{INSIDE}/junit",
        "VERIFIER_OUTPUTS": f"{INSIDE}/build",
        "VERIFIER_REPO": repo,
        "XDG_CACHE_HOME": cache,
        "XDG_CONFIG_HOME": f"{home}/.config",
        "XDG_DATA_HOME": f"{home}/.local/share",
        "XDG_STATE_HOME": f"{home}/.local/state",
        "XDG_RUNTIME_DIR": tmp,
        "PYTHONPYCACHEPREFIX": f"{cache}/pycache",
        "PYTEST_ADDOPTS": f"-o cache_dir={cache}/pytest",
        "COVERAGE_FILE": f"{tmp}/.coverage",
        "PIP_CACHE_DIR": f"{cache}/pip",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "MYPY_CACHE_DIR": f"{cache}/mypy",
        "RUFF_CACHE_DIR": f"{cache}/ruff",
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{cache}/hypothesis",
        "UV_CACHE_DIR": f"{cache}/uv",
        "UV_PROJECT_ENVIRONMENT": f"{home}/.venv",
        "POETRY_CACHE_DIR": f"{cache}/poetry",
        "TOX_WORK_DIR": f"{cache}/tox",
        "PRE_COMMIT_HOME": f"{cache}/pre-commit",
        "npm_config_cache": f"{cache}/npm",
        "npm_config_update_notifier": "false",
        "YARN_CACHE_FOLDER": f"{cache}/yarn",
        "COREPACK_HOME": f"{cache}/corepack",
        "PUPPETEER_CACHE_DIR": f"{cache}/puppeteer",
        "HUSKY": "0",
        "CARGO_HOME": f"{cache}/cargo",
        "CARGO_TARGET_DIR": f"{cache}/cargo-target",
        "GOCACHE": f"{cache}/go-build",
        "GOMODCACHE": f"{cache}/go-mod",
        "GRADLE_USER_HOME": f"{cache}/gradle",
        "CCACHE_DIR": f"{cache}/ccache",
        "CI": "1",
        "NO_COLOR": "1",
        "LANG": "C.UTF-8",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
