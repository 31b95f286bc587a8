"""What steps do to a repository, and what the write guard says of it, for real."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from pipeline_stand import digest, make_repository, pipeline, provider_of, verify


class Case(NamedTuple):
    """A command, and the changes (`path kind`) that are to be told of it."""

    name: str
    command: str
    told: tuple[str, ...] = ()
    needs_git: bool = False


WRITES = (
    Case("append", "echo x >> README.md", ("README.md write",)),
    Case("append_and_forgive", "echo x >> README.md || true", ("README.md write",)),
    Case("append_and_exit_0", "sh -c 'echo x >> README.md'; exit 0", ("README.md write",)),
    Case("modify_and_revert", "cp -p README.md /tmp/k; echo x >> README.md; cp -p /tmp/k README.md",
         ("README.md write",)),
    Case("truncate", ": > README.md", ("README.md write",)),
    Case("truncate_to_size", "truncate -s 2 docs/a.txt", ("docs/a.txt write",)),
    Case("open_for_writing", ": >> README.md", ("README.md write",)),
    Case("same_content_again", "cat README.md > /tmp/k; cat /tmp/k > README.md",
         ("README.md write",)),
    Case("in_place", "sed -i s/hello/bye/ README.md", ("README.md write",)),
    Case("chmod", "chmod +x README.md", ("README.md mode",)),
    Case("chmod_and_back", "chmod +x README.md; chmod -x README.md", ("README.md write",)),
    Case("chmod_directory", "chmod 700 src", ("src mode",)),
    Case("touch", "touch README.md", ("README.md write",)),
    Case("touch_to_date", "touch -d 2020-01-01 README.md", ("README.md write",)),
    Case("remove", "rm README.md", ("README.md delete",)),
    Case("remove_and_restore", "cp -p README.md /tmp/k; rm README.md; cp -p /tmp/k README.md",
         ("README.md write",)),
    Case("rename", "mv README.md other.md", ("README.md delete", "other.md new")),
    Case("rename_over", "mv docs/a.txt docs/b.txt", ("docs/a.txt delete", "docs/b.txt write")),
    Case("rename_directory", "mv docs papers",
         ("docs delete", "papers/a.txt new", "papers/b.txt new")),
    Case("hard_link", "ln README.md hard", ("README.md write", "hard new")),
    Case("link_elsewhere", "ln -sfn docs/a.txt link", ("link write",)),
    Case("through_a_link", "echo x >> link", ("README.md write",)),
    Case("remove_directory", "rm -r docs", ("docs delete",)),
    Case("replace_directory", "rm -r docs; mkdir docs; echo a > docs/a.txt",
         ("docs replace", "docs/a.txt write")),
    Case("file_to_directory", "rm README.md; mkdir README.md", ("README.md replace",)),
    Case("directory_to_file", "rm -r docs; echo x > docs", ("docs replace",)),
    Case("new_file", "echo x > new.txt", ("new.txt new",)),
    Case("new_below_new", "mkdir -p x/y; echo x > x/y/z", ("x/y/z new",)),
    Case("new_link", "ln -s /etc/passwd lnk", ("lnk new",)),
    Case("new_fifo", "mkfifo pipe", ("pipe new",)),
    Case("edit_the_ignore_list", "echo new.txt >> .gitignore; echo x > new.txt",
         (".gitignore write",)),
    Case("draft", "echo x >> draft.txt", ("draft.txt write",)),
    Case("remove_draft", "rm draft.txt", ("draft.txt delete",)),
    Case("hook", "mkdir -p .git/hooks; echo x > .git/hooks/pre-push", (".git/hooks/pre-push git",)),
    Case("configuration", "echo >> .git/config", (".git/config git",)),
    Case("exclude", "echo new.txt >> .git/info/exclude; echo > new.txt",
         (".git/info/exclude git", "new.txt new")),
    Case("remove_git", "rm -rf .git", (".git git",)),
    Case("in_the_background", "(sleep 0.1; echo x >> README.md) & wait", ("README.md write",)),
    Case("stage", "echo '*' > .git/x; rm .git/x; git add -f build/old.o", needs_git=True,
         told=(".git/index git", ".git/objects git")),
    Case("commit", "git -c user.name=a -c user.email=b commit -q --allow-empty -m x",
         needs_git=True, told=(".git/COMMIT_EDITMSG git", ".git/logs git", ".git/objects git",
                               ".git/refs git")),
)  # fmt: skip
READS = (
    Case("read", "cat README.md link src/*.py > /dev/null"),
    Case("search", "grep -r hello . > /dev/null; find . -type f | wc -l"),
    Case("list", "ls -laR > /dev/null; md5sum README.md"),
    Case("run", "bin/run.sh"),
    Case("ignored", "mkdir -p build/deep; echo x > build/deep/x.o; echo x > trace.log"),
    Case("ignored_that_was_there", "echo x >> build/old.o"),
    Case("remove_ignored", "rm -r build"),
    Case("caches", "mkdir -p src/__pycache__ .pytest_cache node_modules/x; touch "
         "src/__pycache__/app.cpython-311.pyc .pytest_cache/x node_modules/x/y.js .coverage"),
    Case("that_ignores_itself", "mkdir own; echo '*' > own/.gitignore; echo x > own/x"),
    Case("temporary", "echo x > $TMPDIR/x; echo x > $HOME/x; echo x > /tmp/y; : > /dev/shm/z"),
    Case("outputs", "tar czf $VERIFIER_OUTPUTS/all.tgz . 2> /dev/null; cp README.md $SNAPSHOT_DIR"),
    Case("empty_directory", "mkdir empty"),
    Case("made_and_gone", "echo x > gone.txt; rm gone.txt"),
    Case("look_at_git", "git status --short; git log --oneline; git diff; git ls-files",
         needs_git=True),
    Case("git_refreshes", "git update-index -q --refresh; git describe --always --dirty",
         needs_git=True),
)  # fmt: skip


def short(path: str) -> str:
    """Below these directories of `.git` names differ from run to run."""
    for place in (".git/objects", ".git/logs", ".git/refs"):
        if path.startswith(f"{place}/"):
            return place
    return path


async def told_of(place: Path, provider_name: str, case: Case) -> None:
    repo = make_repository(place)
    before = digest(repo)
    async with provider_of(provider_name) as provider:
        response = await verify(provider, repo, pipeline(case.command))
    assert digest(repo) == before
    found = sorted({f"{short(v.path)} {v.kind}" for v in response.write_violations})
    assert found == sorted(case.told), response.tail_log
    expected = ("FAIL", "write_violation") if case.told else ("PASS", "ok")
    assert (response.status, response.reason) == expected, response.tail_log


def test_there_are_forty_cases_and_more() -> None:
    assert len({case.name for case in WRITES + READS}) == len(WRITES + READS) >= 50


@pytest.mark.namespaces
@pytest.mark.parametrize("case", WRITES + READS, ids=lambda case: case.name)
async def test_classified_on_local(case: Case, tmp_path: Path) -> None:
    await told_of(tmp_path, "local", case)


@pytest.mark.docker
@pytest.mark.parametrize(
    "case", [case for case in WRITES + READS if not case.needs_git], ids=lambda case: case.name
)
async def test_classified_on_docker(case: Case, tmp_path: Path) -> None:
    await told_of(tmp_path, "docker", case)


SYSTEM = (
    "echo x > /etc/x", "echo x > /x", "echo x >> /etc/passwd", "echo x > /usr/bin/x",
    "rm /bin/sh", "mkdir /opt/x", "touch /usr/lib/x", "echo x > /var/x", "chmod 777 /etc",
    "echo x > /artifacts/logs/x", "ln -s / /srv/x",
    "mount -t tmpfs x /mnt", "echo 1 > /proc/sys/kernel/sysrq",
)  # fmt: skip
PROVIDERS = [
    pytest.param("local", marks=pytest.mark.namespaces),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.mark.parametrize("name", PROVIDERS)
async def test_nothing_of_the_system_can_be_written(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    tries = "\n".join(f"( {line} ) && echo 'WROTE {line}'" for line in SYSTEM)
    async with provider_of(name) as provider:
        response = await verify(provider, repo, pipeline(f"set +e\n{tries}\ntrue"))
        one = await verify(provider, repo, pipeline(SYSTEM[0]))
    assert response.status == "PASS"
    assert "WROTE" not in response.tail_log
    assert (one.status, one.reason) == ("FAIL", "step_failed")


@pytest.mark.parametrize("name", PROVIDERS)
async def test_deny_is_a_read_only_mount(name: str, tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    before = digest(repo)
    async with provider_of(name) as provider:
        for case in WRITES[:1] + WRITES[4:5] + WRITES[14:15]:
            response = await verify(provider, repo, pipeline(case.command, repo_write="deny"))
            assert (response.status, response.reason) == ("FAIL", "step_failed"), case
            assert "Read-only file system" in response.tail_log
        spec = pipeline(
            "! touch build/new.o; ! touch README.md",
            "cat README.md; echo x > $TMPDIR/x",
            repo_write="deny",
        )
        assert (await verify(provider, repo, spec)).passed
        spec = pipeline("touch build/new.o; ls build", repo_write="deny", writable=("build",))
        assert (await verify(provider, repo, spec)).passed
    assert digest(repo) == before


@pytest.mark.namespaces
async def test_discard_lets_steps_write_and_forgets_it(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    before = digest(repo)
    spec = pipeline("echo x >> README.md; rm -r docs", "grep x README.md", repo_write="discard")
    async with provider_of("local") as provider:
        response = await verify(provider, repo, spec)
    assert response.passed
    assert not response.write_violations
    assert digest(repo) == before


@pytest.mark.namespaces
async def test_a_write_ends_a_long_step_early(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        response = await verify(provider, repo, pipeline("echo x >> README.md; sleep 600", "true"))
    assert response.reason == "write_violation"
    assert [step.status for step in response.manifest.steps] == ["failed", "skipped"]
    assert not response.manifest.steps[0].timed_out


@pytest.mark.namespaces
async def test_only_the_step_that_wrote_is_told_of(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    async with provider_of("local") as provider:
        response = await verify(provider, repo, pipeline("true", "echo x > new.txt", "true"))
    assert [step.status for step in response.manifest.steps] == ["passed", "failed", "skipped"]
    assert [(v.step, v.path) for v in response.write_violations] == [("step2", "new.txt")]
    assert "new.txt (new)" in response.tail_log


@pytest.mark.namespaces
async def test_writable_directories_are_free_under_guard(tmp_path: Path) -> None:
    repo = make_repository(tmp_path)
    spec = pipeline("mkdir -p out/x; echo x > out/x/y", writable=("out",))
    async with provider_of("local") as provider:
        assert (await verify(provider, repo, spec)).passed


@pytest.mark.namespaces
async def test_without_git_the_ignore_list_holds_all_the_same(tmp_path: Path) -> None:
    repo = tmp_path / "plain"
    repo.mkdir()
    (repo / "a.txt").write_text("a\n")
    (repo / ".gitignore").write_text("out/\n")
    async with provider_of("local") as provider:
        fine = await verify(provider, repo, pipeline("mkdir out; echo x > out/x; cat a.txt"))
        bad = await verify(provider, repo, pipeline("echo x >> a.txt"))
    assert fine.passed
    assert fine.manifest.commit_sha == ""
    assert fine.manifest.tree_sha.startswith("sha256:")
    assert bad.reason == "write_violation"
