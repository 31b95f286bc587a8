"""A first `agent.yaml`: of what is there, never over what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.apps.pipeline.config import parse_pipeline
from ramify.apps.pipeline.init import first_config, write_first_config
from ramify.contracts.errors import ConfigError

VENV = 'python3 -m venv "$TMPDIR/venv"\n'
PIP = '"$TMPDIR/venv/bin/pip" install '
TEST = '"$TMPDIR/venv/bin/pytest" --junitxml "$JUNIT_DIR/pytest.xml"'


def commands(root: Path, files: dict[str, str]) -> dict[str, str]:
    """Step → command of the file that is written for a repository of these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {step.name: step.command.strip() for step in parse_pipeline(
        first_config(root).encode()
    ).steps}  # fmt: skip


PROJECTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "python with extras and tools": (
        {
            "pyproject.toml": "[project]\nname='x'\n[project.optional-dependencies]\ntest=[]\n"
            "[tool.pytest.ini_options]\n[tool.ruff]\n[tool.mypy]\n",
            "src/x/__init__.py": "",
        },
        {
            "install": f"{VENV}{PIP}-e '.[test]' pytest ruff mypy",
            "lint": '"$TMPDIR/venv/bin/ruff" check --no-fix .',
            "typecheck": '"$TMPDIR/venv/bin/mypy" src',
            "test": TEST,
        },
    ),
    "python with groups": (
        {
            "pyproject.toml": "[project]\nname='x'\n[dependency-groups]\ndev=['pytest']\n"
            "[tool.mypy]\nfiles=['x']\n",
            "tests/conftest.py": "",
        },
        {
            "install": f"{VENV}{PIP}--upgrade pip\n{PIP}--group dev -e . pytest mypy",
            "typecheck": '"$TMPDIR/venv/bin/mypy"',
            "test": TEST,
        },
    ),
    "old python": (
        {"setup.py": "", "setup.cfg": "[tool:pytest]\n", "requirements.txt": "attrs\n"},
        {"install": f"{VENV}{PIP}-r requirements.txt -e . pytest", "test": TEST},
    ),
    "python with unittest": (
        {"setup.py": "", "tests/__init__.py": "", "tests/test_x.py": ""},
        {
            "install": f"{VENV}{PIP}-e .",
            "test": '"$TMPDIR/venv/bin/python" -m unittest discover -s tests -t .',
        },
    ),
    "python whose tests are no package": (
        {"setup.py": "", "tests/test_x.py": "import unittest\n"},
        {
            "install": f"{VENV}{PIP}-e .",
            "test": '"$TMPDIR/venv/bin/python" -m unittest discover -s tests',
        },
    ),
    "python with tests that only pytest runs": (
        {"setup.py": "", "tests/test_x.py": "import x\n\n\ndef test_x():\n    assert x\n"},
        {"install": f"{VENV}{PIP}-e . pytest", "test": TEST},
    ),
    "requirements only": (
        {"requirements.txt": "", "pytest.ini": "[pytest]\n"},
        {"install": f"{VENV}{PIP}-r requirements.txt pytest", "test": TEST},
    ),
    "uv": (
        {
            "pyproject.toml": "[project]\nname='x'\n[tool.pytest]\n[dependency-groups]\n"
            "testing=[]\n",
            "uv.lock": "",
        },
        {
            "install": f"{VENV}{PIP}uv pytest\n"
            'UV_PROJECT_ENVIRONMENT="$TMPDIR/venv" "$TMPDIR/venv/bin/uv" sync --frozen --inexact'
            " --group testing",
            "test": TEST,
        },
    ),
    "poetry": (
        {"pyproject.toml": "[build-system]\n[tool.poetry]\n[tool.ruff]\n", "poetry.lock": ""},
        {
            "install": f"{VENV}python3 -m venv \"$TMPDIR/poetry\"\n"
            f'"$TMPDIR/poetry/bin/pip" install poetry\n{PIP}ruff\n'
            '"$TMPDIR/poetry/bin/poetry" check --lock\n'
            'VIRTUAL_ENV="$TMPDIR/venv" "$TMPDIR/poetry/bin/poetry" install --no-interaction'
            " --all-extras",
            "lint": '"$TMPDIR/venv/bin/ruff" check --no-fix .',
        },
    ),
    "npm": (
        {
            "package.json": json.dumps(
                {
                    "scripts": {
                        "typecheck": "tsc", "lint": "eslint .", "build": "tsc -b",
                        "test": "jest", "start": "node .",
                    }
                }
            ),
            "package-lock.json": "{}",
        },
        {
            "install": "npm ci",
            "typecheck": "npm run typecheck",
            "lint": "npm run lint",
            "build": "npm run build",
            "test": "npm test -- --ci",
        },
    ),
    "npm without anything": (
        {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
        {"install": "npm install --no-save --no-package-lock"},
    ),
    "old yarn": (
        {"package.json": '{"scripts": {"test": "jest", "lint": ""}}', "yarn.lock": ""},
        {
            "install": "yarn install --frozen-lockfile",
            "lint": "yarn run lint",
            "test": "yarn test --ci",
        },
    ),
    "yarn": (
        {"package.json": '{"packageManager": "yarn@4.1.0"}', "yarn.lock": ""},
        {"install": "yarn install --immutable"},
    ),
    "pnpm": (
        {"package.json": '{"scripts": {"test": "vitest"}}', "pnpm-lock.yaml": ""},
        {"install": "pnpm install --frozen-lockfile", "test": "pnpm test"},
    ),
    "bun": (
        {"package.json": '{"scripts": {"test": "bun test"}}', "bun.lock": ""},
        {"install": "bun install --frozen-lockfile", "test": "bun run test"},
    ),
    "rust": (
        {"Cargo.toml": "[package]\nname='x'\n[lints.clippy]\nall='warn'\n", "Cargo.lock": "",
         "rustfmt.toml": ""},
        {
            "install": "cargo fetch --locked",
            "format": "cargo fmt --all --check",
            "lint": "cargo clippy --locked --offline --tests",
            "build": "cargo build --locked --offline",
            "test": "cargo test --locked --offline",
        },
    ),
    "rust workspace": (
        {"Cargo.toml": "[workspace]\nmembers=['a']\n"},
        {
            "install": "cargo fetch",
            "build": "cargo build --offline --workspace",
            "test": "cargo test --offline --workspace",
        },
    ),
    "python and node": (
        {"setup.py": "", "conftest.py": "", "package.json": "{}", "package-lock.json": "{}"},
        {
            "python-install": f"{VENV}{PIP}-e . pytest",
            "python-test": TEST,
            "node-install": "npm ci",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROJECTS)
def test_what_is_written_for_a_project(name: str, tmp_path: Path) -> None:
    files, expected = PROJECTS[name]
    assert commands(tmp_path, files) == expected


@pytest.mark.parametrize(
    ("files", "image"),
    [
        ({"setup.py": "setup()"}, "python:3.12-slim"),
        ({"setup.py": "setup(ext_modules=[])"}, "python:3.12"),
        ({"pyproject.toml": "[build-system]\nrequires=['setuptools', 'Cython>=3']"}, "python:3.12"),
        ({"pyproject.toml": "[build-system]\nrequires=['setuptools-scm[toml]']"}, "python:3.12"),
        ({"pyproject.toml": "[build-system]\nrequires=['hatchling']"}, "python:3.12-slim"),
        ({"pyproject.toml": "[build-system]\nrequires=7"}, "python:3.12-slim"),
        ({"package.json": "{}"}, "node:22"),
        ({"Cargo.toml": "[package]"}, "rust:1"),
    ],
)
def test_the_image_has_what_building_needs(
    files: dict[str, str], image: str, tmp_path: Path
) -> None:
    commands(tmp_path, files)
    assert parse_pipeline(first_config(tmp_path).encode()).image == image


def test_only_what_installs_has_the_network(tmp_path: Path) -> None:
    commands(tmp_path, PROJECTS["python and node"][0])
    spec = parse_pipeline(first_config(tmp_path).encode())
    assert [step.network for step in spec.steps] == ["full", None, "full"]
    assert spec.env == {"CI": "1"}
    assert spec.image is None


def test_it_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    path = write_first_config(tmp_path)
    assert path == tmp_path / "agent.yaml"
    assert path.read_text() == first_config(tmp_path)
    path.write_text("mine: 1\n")
    with pytest.raises(ConfigError, match=r"agent.yaml: is there already and is not overwritten"):
        write_first_config(tmp_path)
    assert path.read_text() == "mine: 1\n"


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "setup.py").touch()
    (tmp_path / "agent.yaml").symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="is there already"):
        write_first_config(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_project_that_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("all:\n")
    with pytest.raises(ConfigError) as caught:
        write_first_config(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: holds no Python")
    assert "{steps: [{name: test, command: npm test}]}" in said
    assert not (tmp_path / "agent.yaml").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pyproject.toml", "[project\n", "is not TOML"),
        ("pyproject.toml", "a=" + "[" * 100_000, "is not TOML"),
        ("package.json", "{", "is not JSON"),
        ("package.json", "[" * 100_000, "is not JSON"),
        ("package.json", "[]", "is not a table"),
        ("Cargo.toml", "=", "is not TOML"),
        ("package.json", "\udcff", "is not UTF-8"),
    ],
)
def test_a_broken_file_is_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"{name}: {said}") as caught:
        first_config(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"scripts": []}',
        '{"scripts": {"test": 1, "build": null}}',
        '{"scripts": {"test": "x"}, "packageManager": 7}',
    ],
)
def test_odd_packages(text: str, tmp_path: Path) -> None:
    (tmp_path / "yarn.lock").touch()
    assert commands(tmp_path, {"package.json": text})["install"].startswith("yarn install")


@given(script=st.text(max_size=30))
def test_whatever_a_script_is_called_the_file_can_be_read(
    script: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("repo")
    (root / "package.json").write_text(json.dumps({"scripts": {script: "x", "test": script}}))
    assert parse_pipeline(first_config(root).encode()).steps[0].name == "install"
