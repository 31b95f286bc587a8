"""The directory of a run, what of it steps see, and the variables that lead them there.

```
ARTIFACT_DIR/
├── runs/{run_id}/
│   ├── manifest.json         written last; a run without one did not end
│   ├── logs/                 combined.log, step-01-install.log, ...
│   ├── build/                $VERIFIER_OUTPUTS, and the declared artifacts
│   ├── tmp/                  /tmp and $TMPDIR
│   ├── db/ snapshots/ fixtures/ junit/
│   │                         $TEST_DB_PATH, $SNAPSHOT_DIR, $FIXTURE_DIR, $JUNIT_DIR
│   ├── files/                /artifacts, $ARTIFACT_DIR: whatever else is written there
│   └── .work/                home, cache and what steps write over the repository; removed
└── cache/                    build caches, where the pipeline asks for one
```

Steps can write to all of these but the logs and the manifest, and to two directories of `.work`.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ramify.apps.pipeline.retention import belongs_to
from ramify.contracts.errors import ConfigError
from ramify.contracts.removal import remove_tree
from ramify.contracts.sandbox import Mount

INSIDE = "/artifacts"
SCRATCH = ("tmp", "db", "fixtures")
"""What steps write for themselves: no answer names anything in it."""

_FILES = "files"
_KEPT = ("build", "junit", "snapshots", *SCRATCH)
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
        repo: the repository that it is of.

    Raises:
        ConfigError: it cannot be made.
    """

    def __init__(self, root: Path, run_id: str, repo: Path) -> None:
        try:
            (root / "runs").mkdir(parents=True, exist_ok=True)
            (root / "cache").mkdir(exist_ok=True)
            self.root = root.resolve()
            self.path = self.root / "runs" / run_id
            self.path.mkdir()
            (self.path / "logs").mkdir()
            self.work.mkdir(mode=0o711)
            belongs_to(self.path, repo)
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
        for name in (*_KEPT, *_PASSING, _FILES):
            place = self.source(name)
            place.mkdir(mode=0o755)
            if owner is not None:
                os.chown(place, *owner)
        for name in (*_KEPT, *_PASSING):  # where the others are mounted
            (self.path / _FILES / name).mkdir(mode=0o755)
        self.source("tmp").chmod(0o1777)

    def mounts(self, cache: Path | None) -> tuple[Mount, ...]:
        """What steps see of it; /tmp comes first, so that nothing else is hidden behind it.

        `cache` is what they find in /artifacts/cache; whatever they do to it is dropped.
        """
        below = {f"{INSIDE}/{name}": name for name in (*_KEPT, *_PASSING)}
        places = {"/tmp": "tmp", INSIDE: _FILES, **below}
        found = {target: Mount(str(self.source(n)), target, "rw") for target, n in places.items()}
        if cache is not None:
            target = f"{INSIDE}/cache"
            found[target] = Mount(str(cache), target, "cow", self.scratch("cache"))
        return tuple(found.values())

    def scratch(self, name: str) -> str:
        """A new directory for what is written over a mount."""
        place = self.work / f"over-{name}"
        place.mkdir(mode=0o711)
        return str(place)

    def written_over(self, name: str) -> Path:
        """Where what was written over a mount lies."""
        return self.work / f"over-{name}" / "upper"

    def clear(self) -> None:
        """Remove what is of no use after the run. Blocks; raises OSError."""
        remove_tree(self.work)
        for name in (*_KEPT, *_PASSING):
            with suppress(FileNotFoundError):  # it was not furnished
                (self.path / _FILES / name).rmdir()


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
        "ARTIFACT_DIR": INSIDE,
        "TEST_DB_PATH": f"{INSIDE}/db",
        "FIXTURE_DIR": f"{INSIDE}/fixtures",
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
