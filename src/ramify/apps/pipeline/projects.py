"""What kinds of project a repository holds, and how each is installed, checked, built and tested.

Only files at the top of the repository are looked at. Nothing of the repository is run.
"""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ramify.contracts.errors import ConfigError

_LARGEST = 4 * 1024 * 1024
_VENV = '"$TMPDIR/venv/bin/'
_PIP = f'{_VENV}pip"'
_BUILT_WITH = re.compile(
    r"cython|pybind11|nanobind|cffi|scikit-build|meson-python|maturin|rust|[-_](scm|vcs)\b", re.I
)
_EXTENSION = re.compile(r"\bext_modules\b|\bExtension\(|\bcffi_modules\b|\buse_scm_version\b")
_FOR_PYTEST = re.compile(r"^(?:import pytest\b|from pytest\b|(?:async )?def test_)", re.MULTILINE)
_TEST_EXTRAS = ("test", "tests", "testing", "dev")


@dataclass(frozen=True, slots=True)
class FoundStep:
    """A step to write down; `note` is for a person, `network` says that it must reach hosts."""

    name: str
    command: str
    note: str = ""
    network: bool = False


@dataclass(frozen=True, slots=True)
class Project:
    """A kind of project that a repository holds."""

    kind: str
    image: str
    steps: tuple[FoundStep, ...]
    protected: tuple[str, ...]


def find_projects(repository: Path) -> list[Project]:
    """The projects at the top of a repository. Raises: ConfigError (a file of theirs is broken)."""
    found = (_python(repository), _node(repository), _rust(repository))
    return [project for project in found if project is not None]


# Python ------------------------------------------------------------------------------------------


def _python(root: Path) -> Project | None:
    pyproject = _toml(root / "pyproject.toml")
    requirements = [n for n in ("requirements.txt",) if (root / n).is_file()]
    setup = (root / "setup.py").is_file() or (root / "setup.cfg").is_file()
    package = setup or "project" in pyproject or "build-system" in pyproject
    if not (package or requirements):
        return None
    sections = _ini_sections(root, "setup.cfg") | _ini_sections(root, "tox.ini")
    tool = _at(pyproject, "tool")
    pytest = "pytest" in tool or bool({"pytest", "tool:pytest"} & sections)
    pytest = pytest or any((root / n).is_file() for n in ("pytest.ini", "conftest.py"))
    tests = [n for n in ("tests", "test", "testing") if (root / n).is_dir()]
    pytest = pytest or any(any((root / n).glob("**/conftest.py")) for n in tests)
    pytest = pytest or any(_for_pytest(root / name) for name in tests)
    ruff = "ruff" in tool or any((root / n).is_file() for n in ("ruff.toml", ".ruff.toml"))
    mypy = "mypy" in tool or "mypy" in sections
    mypy = mypy or any((root / n).is_file() for n in ("mypy.ini", ".mypy.ini"))
    wanted = [n for n, asked in (("pytest", pytest), ("ruff", ruff), ("mypy", mypy)) if asked]
    install = _python_install(root, pyproject, package, requirements, wanted)
    steps = [FoundStep("install", install, network=True)]
    if ruff:
        steps.append(FoundStep("lint", _from_venv("ruff check --no-fix .")))
    if mypy:
        named = {"files", "packages", "modules"} & set(_at(tool, "mypy"))
        target = "" if named else " src" if (root / "src").is_dir() else " ."
        steps.append(FoundStep("typecheck", _from_venv(f"mypy{target}")))
    if pytest:
        steps.append(FoundStep("test", _from_venv('pytest --junitxml "$JUNIT_DIR/pytest.xml"')))
    elif tests:
        # Only what is a package can be imported from the top.
        top = " -t ." if (root / tests[0] / "__init__.py").is_file() else ""
        steps.append(
            FoundStep("test", _from_venv(f"python -m unittest discover -s {tests[0]}{top}"))
        )
    locks = [n for n in ("uv.lock", "poetry.lock") if (root / n).is_file()]
    protected = (*(f"{n}/**" for n in tests), *requirements, *locks)
    image = "python:3.12" if _needs_tools(root, pyproject) else "python:3.12-slim"
    return Project("Python", image, tuple(steps), protected)


def _for_pytest(tests: Path) -> bool:
    """Whether a test is a plain function, which unittest would pass over, or imports pytest."""
    return any(_FOR_PYTEST.search(_read(file) or "") for file in sorted(tests.glob("**/test*.py")))


def _needs_tools(root: Path, pyproject: dict[str, Any]) -> bool:
    """Whether it is built with a compiler or git, which slim images do not have."""
    requires: object = _at(pyproject, "build-system").get("requires")
    named = " ".join(map(str, cast("list[object]", requires))) if isinstance(requires, list) else ""
    setup = _read(root / "setup.py") or ""
    return bool(_BUILT_WITH.search(named) or _EXTENSION.search(setup))


def _python_install(
    root: Path, pyproject: dict[str, Any], package: bool, requirements: list[str], wanted: list[str]
) -> str:
    """What makes the environment that the other steps use, in $TMPDIR/venv.

    The tools that are `wanted` come first: what a lock file says of them holds.
    """
    lines = ['python3 -m venv "$TMPDIR/venv"']
    optional = _at(_at(pyproject, "project"), "optional-dependencies")
    extras = [name for name in _TEST_EXTRAS if name in optional]
    groups = [name for name in _TEST_EXTRAS if name in _at(pyproject, "dependency-groups")][:1]
    if (root / "uv.lock").is_file():
        lines.append(" ".join([f"{_PIP} install uv", *wanted]))
        sync = f'UV_PROJECT_ENVIRONMENT="$TMPDIR/venv" {_VENV}uv" sync --frozen --inexact'
        asked = [f"--extra {name}" for name in extras] + [f"--group {name}" for name in groups]
        return "\n".join([*lines, " ".join([sync, *asked])])
    if (root / "poetry.lock").is_file():
        poetry = '"$TMPDIR/poetry/bin/poetry"'
        lines.append('python3 -m venv "$TMPDIR/poetry"')
        lines.append('"$TMPDIR/poetry/bin/pip" install poetry')
        lines += [" ".join([f"{_PIP} install", *wanted])] if wanted else []
        lines.append(f"{poetry} check --lock")
        lines.append(f'VIRTUAL_ENV="$TMPDIR/venv" {poetry} install --no-interaction --all-extras')
        return "\n".join(lines)
    if groups:  # an older pip knows nothing of groups
        lines.append(f"{_PIP} install --upgrade pip")
    arguments = [f"-r {name}" for name in requirements] + [f"--group {name}" for name in groups]
    if package:
        arguments.append(f"-e '.[{','.join(extras)}]'" if extras else "-e .")
    return "\n".join([*lines, " ".join([f"{_PIP} install", *arguments, *wanted])])


def _from_venv(command: str) -> str:
    program, _, rest = command.partition(" ")
    return f'{_VENV}{program}" {rest}'.rstrip()


def _ini_sections(root: Path, name: str) -> set[str]:
    text = _read(root / name)
    if text is None:
        return set()
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"cannot be read: {said}", file=str(root / name)) from None
    return set(parser.sections())


# Node --------------------------------------------------------------------------------------------

_NODE_LOCKS = (
    ("pnpm-lock.yaml", "pnpm", "pnpm install --frozen-lockfile"),
    ("yarn.lock", "yarn", "yarn install --frozen-lockfile"),
    ("bun.lock", "bun", "bun install --frozen-lockfile"),
    ("bun.lockb", "bun", "bun install --frozen-lockfile"),
    ("package-lock.json", "npm", "npm ci"),
    ("npm-shrinkwrap.json", "npm", "npm ci"),
)
_NODE_SCRIPTS = (
    ("typecheck", ("typecheck", "type-check", "check-types", "tsc")),
    ("lint", ("lint:check", "lint")),
    ("format", ("format:check", "prettier:check", "fmt:check")),
    ("build", ("build",)),
    ("test", ("test:ci", "test")),
)
_NO_TEST = "no test specified"
_SCRIPT = re.compile(r"[A-Za-z0-9:_.-]+")


def _node(root: Path) -> Project | None:
    package = _json(root / "package.json")
    if package is None:
        return None
    lock, manager, install = next(
        (row for row in _NODE_LOCKS if (root / row[0]).is_file()),
        ("", "npm", "npm install --no-save --no-package-lock"),
    )
    if manager == "yarn" and _modern_yarn(root, package):
        install = "yarn install --immutable"
    note = "" if lock else "commit a lock file, so that what is installed does not change by itself"
    steps = [FoundStep("install", install, note, network=True)]
    scripts = _at(package, "scripts")
    for name, candidates in _NODE_SCRIPTS:
        script = next((c for c in candidates if isinstance(scripts.get(c), str)), None)
        if script is None or _NO_TEST in scripts[script] or not _SCRIPT.fullmatch(script):
            continue
        steps.append(_node_step(name, script, scripts[script], manager))
    return Project("Node", "node:22", tuple(steps), (lock,) if lock else ())


def _node_step(name: str, script: str, body: str, manager: str) -> FoundStep:
    command = f"{manager} run {script}" if script != "test" or manager == "bun" else (
        f"{manager} test"
    )  # fmt: skip
    if name == "test" and re.search(r"\bjest\b", body):
        # With --ci it fails where it would write a snapshot.
        command += " -- --ci" if manager == "npm" else " --ci"
    return FoundStep(name, command)


def _modern_yarn(root: Path, package: dict[str, Any]) -> bool:
    declared = package.get("packageManager")
    if isinstance(declared, str) and (match := re.match(r"yarn@(\d+)", declared)):
        return int(match[1]) > 1
    return (root / ".yarnrc.yml").is_file()


# Rust --------------------------------------------------------------------------------------------


def _rust(root: Path) -> Project | None:
    cargo = _toml(root / "Cargo.toml")
    if not ("package" in cargo or "workspace" in cargo):
        return None
    locked = (root / "Cargo.lock").is_file()
    flags = "--locked --offline" if locked else "--offline"
    note = "" if locked else "commit Cargo.lock, or let .gitignore name it: cargo writes one"
    every = " --workspace" if "workspace" in cargo else ""
    fetch = "cargo fetch --locked" if locked else "cargo fetch"
    steps = [FoundStep("install", fetch, note, network=True)]
    if any((root / n).is_file() for n in ("rustfmt.toml", ".rustfmt.toml")):
        steps.append(FoundStep("format", "cargo fmt --all --check"))
    lints = {*_at(cargo, "lints"), *_at(_at(cargo, "workspace"), "lints")}
    if "clippy" in lints or any((root / n).is_file() for n in ("clippy.toml", ".clippy.toml")):
        note = "-- -D warnings at its end makes warnings fail too"
        steps.append(FoundStep("lint", f"cargo clippy {flags}{every} --tests", note))
    steps.append(FoundStep("build", f"cargo build {flags}{every}"))
    steps.append(FoundStep("test", f"cargo test {flags}{every}"))
    protected = [f"{n}/**" for n in ("tests",) if (root / n).is_dir()]
    return Project("Rust", "rust:1", tuple(steps), (*protected, *(["Cargo.lock"] * locked)))


# Files -------------------------------------------------------------------------------------------


def _toml(path: Path) -> dict[str, Any]:
    text = _read(path)
    if text is None:
        return {}
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"is not TOML: {error}", file=str(path)) from None


def _json(path: Path) -> dict[str, Any] | None:
    text = _read(path)
    if text is None:
        return None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}", file=str(path)) from None
    if not isinstance(value, dict):
        raise ConfigError("is not a table of keys and values", file=str(path))
    return cast("dict[str, Any]", value)


def _read(path: Path) -> str | None:
    """The text of a file; None where there is no such file."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"is larger than {_LARGEST} bytes", file=str(path))
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _at(table: dict[str, Any], key: str) -> dict[str, Any]:
    """The table at a key; an empty one where there is none."""
    value = table.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
