"""Projects that nobody here wrote pass their own checks, and are as they were before.

`dev/real-projects` fetches them; `make proof` verifies all, on both providers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_SCRIPT = _ROOT / "dev" / "real-projects"
_TOOLCHAINS = "ramify/stand-in:toolchains"
_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STEPS = {
    "iniconfig": ["install", "lint", "typecheck", "build", "test"],
    "click": ["install", "lint", "typecheck", "build", "test"],
    "markupsafe": ["install", "lint", "typecheck", "build", "test"],
    "wrapt": ["install", "build", "test"],
    "tiny-emitter": ["install", "build", "test"],
    "fastq": ["install", "lint", "typecheck", "test"],
    "itoa": ["install", "format", "build", "test"],
}
_LEAST_TESTS = {"iniconfig": 40, "click": 1000, "markupsafe": 50, "wrapt": 1000}
_MARKS = {"local": pytest.mark.namespaces, "docker": pytest.mark.docker}
_ONE = [pytest.param("iniconfig", name, marks=mark) for name, mark in _MARKS.items()]
_ALL = [
    pytest.param(project, name, marks=(mark, pytest.mark.proof))
    for project in _STEPS
    for name, mark in _MARKS.items()
    if project != "iniconfig"
]
PROVIDERS = [pytest.param(name, marks=mark) for name, mark in _MARKS.items()]


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are fetched to, once for all workers."""
    return tmp_path_factory.getbasetemp().parent / "real-projects"


def fetched(projects: Path, name: str) -> Path:
    """A project, with what it needs on this machine."""
    projects.mkdir(exist_ok=True)
    with (projects / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if name != "iniconfig":  # that one needs Python alone
            subprocess.run([_SCRIPT, "--tools"], check=True, capture_output=True)
        made_by = _SCRIPT.read_bytes() + (_ROOT / "dev" / "projects" / f"{name}.yaml").read_bytes()
        place = projects / hashlib.sha256(made_by).hexdigest()[:12]
        if not (there := place / f"{name}.fetched").exists():  # another worker may verify it now
            subprocess.run([_SCRIPT, place, name], check=True, capture_output=True)
            there.touch()
    return place / name


def digest(tree: Path) -> str:
    """Names, kinds, modes, owners, times, links and content of everything in a tree."""
    hasher = hashlib.sha256()
    for path in sorted([tree, *tree.rglob("*")]):
        facts = path.lstat()
        told = [str(path), facts.st_mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns]
        if path.is_symlink():
            told.append(os.readlink(path))
        elif path.is_file():
            told.append(hashlib.sha256(path.read_bytes()).hexdigest())
        hasher.update(json.dumps(told).encode())
    return hasher.hexdigest()


def image_for(project: str, provider: str) -> str:
    if provider == "local":
        return "host"
    if project == "iniconfig":
        return "python:3.12-slim"
    subprocess.run([_ROOT / "dev" / "base-images", _TOOLCHAINS], check=True, capture_output=True)
    return _TOOLCHAINS


def verified(repo: Path, provider: str, image: str, artifacts: Path) -> dict[str, Any]:
    """The answer of `ramify verify`, as its users get it."""
    told = subprocess.run([_SCRIPT, "--environment"], check=True, capture_output=True, text=True)
    network = dict(line.split("=", 1) for line in told.stdout.splitlines())
    argv = [sys.executable, "-m", "ramify.cli.main", "verify", str(repo), "--json"]
    done = subprocess.run(
        [*argv, "--sandbox", provider, "--image", image],
        env={**os.environ, **network, "PATH": _SYSTEM, "AGENT_ARTIFACT_DIR": str(artifacts)},
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr.decode()
    response = json.loads(done.stdout)
    assert (done.returncode == 0) == (response["status"] == "PASS")
    return response


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("project", "provider"), [*_ONE, *_ALL])
def test_a_real_project_passes_and_is_not_touched(
    projects: Path, project: str, provider: str, tmp_path: Path
) -> None:
    repo = fetched(projects, project)
    before = digest(repo)
    response = verified(repo, provider, image_for(project, provider), tmp_path / "artifacts")
    assert digest(repo) == before
    assert response["status"] == "PASS", response["tail_log"]
    manifest = response["manifest"]
    assert [step["name"] for step in manifest["steps"]] == _STEPS[project]
    assert {step["exit_code"] for step in manifest["steps"]} == {0}
    assert manifest["repo_write"] == "guard"
    assert not response["unpinned"]
    seconds = sum(step["duration_ms"] for step in manifest["steps"]) / 1000
    tests = response["tests"]
    if project in _LEAST_TESTS:
        assert tests["failed"] == 0
        assert tests["passed"] >= _LEAST_TESTS[project]
        assert not tests["unreadable"]
        assert any(artifact["path"].endswith(".whl") for artifact in response["artifacts"])
    counted = f"{tests['passed']} passed, {tests['skipped']} skipped" if tests else "own runner"
    print(f"{project:12} {provider:7} {len(manifest['steps'])} steps {seconds:6.1f} s  {counted}")


@pytest.mark.parametrize("mode", ["guard", "deny"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_steps_of_a_real_project_cannot_write_where_they_must_not(
    projects: Path, provider: str, mode: str, tmp_path: Path
) -> None:
    source = fetched(projects, "iniconfig")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for number, (command, reason) in enumerate(
        [
            ("echo >> src/iniconfig/__init__.py", "write"),
            ("echo > /usr/bin/ramify-was-here", "system"),
            ("echo > /etc/ramify-was-here", "system"),
        ]
    ):
        repo = tmp_path / f"repo-{number}"
        # With links shared, a commit in one would touch the time of objects in the other.
        subprocess.run([*git, "clone", "-q", "--no-hardlinks", source, repo], check=True)
        (repo / "agent.yaml").write_text(
            f"verification:\n  repo_write: {mode}\n  steps:\n"
            f"    - {{name: bad, command: '{command}'}}\n    - {{name: after, command: 'true'}}\n"
        )
        subprocess.run([*git, "-C", repo, "commit", "-qam", "pipeline"], check=True)
        before = digest(repo)
        image = image_for("iniconfig", provider)
        response = verified(repo, provider, image, tmp_path / "artifacts")
        assert response["status"] == "FAIL", command
        assert digest(repo) == before
        steps = response["manifest"]["steps"]
        assert [step["status"] for step in steps] == ["failed", "skipped"]
        if reason == "write" and mode == "guard":
            assert response["reason"] == "write_violation"
            assert [v["path"] for v in response["write_violations"]] == [
                "src/iniconfig/__init__.py"
            ]
        else:
            assert response["reason"] == "step_failed"
            assert "Read-only file system" in response["tail_log"]
    assert not Path("/usr/bin/ramify-was-here").exists()
    assert not Path("/etc/ramify-was-here").exists()
