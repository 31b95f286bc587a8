"""Checks of `Sandbox.upload`: what is copied, with which mode and owner, and never elsewhere."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ramify.contracts.errors import SandboxError
from ramify.contracts.sandbox import MIB
from ramify.testing.check import CheckSkipped, check, equal, raises, require
from ramify.testing.sandbox_bench import SandboxBench, need_user, sh

HIDDEN_PROGRAMS = "cat chmod chown cp find install ln ls mkdir mv rm rmdir tar touch test stat sh"


def _file(path: Path, content: bytes = b"content", mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


@check()
async def _file_content_and_mode(bench: SandboxBench) -> None:
    """A host file is copied byte for byte, and keeps its mode."""
    content = bytes(range(256)) * 16
    async with bench.place() as (sandbox, work):
        for mode in (0o644, 0o755, 0o600, 0o444):
            local = _file(bench.scratch / f"f{mode:o}", content, mode)
            await sandbox.upload(local, f"{work}/f")
            equal((await sandbox.exec(["cat", f"{work}/f"])).stdout, content, "content")
            equal(await sh(sandbox, f"stat -c %a {work}/f"), f"{mode:o}", "mode")


@check()
async def _big_file(bench: SandboxBench) -> None:
    """A file of any size is copied whole."""
    content = hashlib.shake_256(b"upload").digest(24 * MIB)
    async with bench.place() as (sandbox, work):
        await sandbox.upload(_file(bench.scratch / "big", content), f"{work}/big")
        found = (await sh(sandbox, f"sha256sum < {work}/big")).split()[0]
        equal(found, hashlib.sha256(content).hexdigest(), "digest inside")


@check()
async def _empty_file_and_directory(bench: SandboxBench) -> None:
    """Empty files and empty directories are copied, too."""
    tree = bench.scratch / "tree"
    _file(tree / "empty", b"")
    (tree / "nothing").mkdir()
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/tree")
        await sh(sandbox, f"cd {work}/tree && test -f empty && test ! -s empty && test -d nothing")


@check()
async def _parents_are_made(bench: SandboxBench) -> None:
    """Missing parents are made, for a file and for a directory."""
    tree = _file(bench.scratch / "tree" / "a" / "b").parent.parent
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree / "a" / "b", f"{work}/x/y/z/file")
        await sandbox.upload(tree, f"{work}/p/q/tree")
        equal(await sh(sandbox, f"cat {work}/x/y/z/file {work}/p/q/tree/a/b"), "content" * 2, "it")


@check()
async def _directory_is_merged(bench: SandboxBench) -> None:
    """The content of a host directory merges into `remote`: files are replaced, others stay."""
    tree = bench.scratch / "tree"
    _file(tree / "same", b"new")
    _file(tree / "sub" / "added", b"added")
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkdir sub && echo old > same && printf kept > sub/kept")
        await sandbox.upload(tree, work)
        equal(await sh(sandbox, f"cd {work} && cat same sub/kept sub/added"), "newkeptadded", "it")


@check()
async def _clear_removes_what_stood_there(bench: SandboxBench) -> None:
    """`clear` first removes whatever stands at `remote`."""
    tree = _file(bench.scratch / "tree" / "new").parent
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"mkdir -p {work}/t/deep/er && echo x > {work}/t/deep/er/old")
        await sandbox.upload(tree, f"{work}/t", clear=True)
        equal(await sh(sandbox, f"ls -A {work}/t"), "new", "what is left")
        await sandbox.upload(tree / "new", f"{work}/t", clear=True)
        equal(await sh(sandbox, f"cat {work}/t"), "content", "a file in place of a directory")
        await sandbox.upload(tree, f"{work}/absent", clear=True)
        equal(await sh(sandbox, f"ls -A {work}/absent"), "new", "where nothing stood")


@check()
async def _clear_removes_a_link_itself(bench: SandboxBench) -> None:
    """`clear` removes a link itself, never its target."""
    tree = _file(bench.scratch / "tree" / "new").parent
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkdir victim && echo v > victim/kept && ln -s victim t")
        await sandbox.upload(tree, f"{work}/t", clear=True)
        equal(await sh(sandbox, f"ls -A {work}/victim"), "kept", "the link's target")
        await sh(sandbox, f"test -d {work}/t && test ! -L {work}/t && test -f {work}/t/new")


@check("isolation")
async def _clear_runs_no_program_of_the_inside(bench: SandboxBench) -> None:
    """`clear` removes without running any program of the inside."""
    tree = _file(bench.scratch / "tree" / "new").parent
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"mkdir -p {work}/t /usr/local/sbin /usr/local/bin && echo x > {work}/t/old && "
            f"for p in {HIDDEN_PROGRAMS} python3 python perl busybox; do "
            "for d in /usr/local/sbin /usr/local/bin; do /bin/rm -f $d/$p; "
            f"printf '#!/bin/sh\\necho %s >> {work}/witness\\nexit 0\\n' $p > $d/$p; "
            f"/bin/chmod 755 $d/$p; done; done; /bin/rm -f {work}/witness",
        )
        await sandbox.upload(tree, f"{work}/t", clear=True)
        script = f"/bin/cat {work}/witness 2>/dev/null; cd {work}/t && echo *"
        equal(await sh(sandbox, script), "new", "planted programs that ran, and what is left")


@check()
async def _mode_is_set_on_files(bench: SandboxBench) -> None:
    """`mode` is set on files; directories keep theirs."""
    tree = bench.scratch / "tree"
    _file(tree / "d" / "a", mode=0o644)
    (tree / "d").chmod(0o750)
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/t", mode=0o700)
        equal(await sh(sandbox, f"cd {work}/t && stat -c %a d d/a"), "750\n700", "modes")
        await sandbox.upload(tree / "d" / "a", f"{work}/f", mode=0o440)
        equal(await sh(sandbox, f"stat -c %a {work}/f"), "440", "mode of a single file")


@check()
async def _owner(bench: SandboxBench) -> None:
    """`owner` is a user name inside; the default is root, whoever owns the host's file."""
    tree = _file(bench.scratch / "tree" / "d" / "a").parent.parent
    if os.geteuid() == 0:
        os.chown(tree / "d" / "a", 12345, 12345)
    async with bench.place() as (sandbox, work):
        await need_user(sandbox, "nobody")
        if await sh(sandbox, "id -u") != "0":
            raise CheckSkipped("the default user is not root, so it cannot own for others")
        await sandbox.upload(tree, f"{work}/r")
        equal(await sh(sandbox, f"cd {work}/r && stat -c %u:%g d d/a"), "0:0\n0:0", "default")
        await sandbox.upload(tree, f"{work}/n", owner="nobody")
        equal(await sh(sandbox, f"cd {work}/n && stat -c %U d d/a"), "nobody\nnobody", "owner")


@check()
async def _planted_link_is_replaced(bench: SandboxBench) -> None:
    """The copy replaces files: a link planted at the target is replaced, not written through."""
    local = _file(bench.scratch / "f", b"new")
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && echo victim > victim && ln -s {work}/victim link")
        await sandbox.upload(local, f"{work}/link")
        equal(await sh(sandbox, f"cat {work}/victim"), "victim", "the link's target")
        await sh(sandbox, f"test ! -L {work}/link && grep -q new {work}/link")


@check()
async def _planted_fifo_is_replaced(bench: SandboxBench) -> None:
    """The copy replaces files: a FIFO planted at the target neither blocks nor is written to."""
    local = _file(bench.scratch / "f", b"new")
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"mkfifo {work}/fifo")
        await sandbox.upload(local, f"{work}/fifo")
        await sh(sandbox, f"test -f {work}/fifo && grep -q new {work}/fifo")


@check("isolation")
async def _planted_parents_do_not_reach_the_host(bench: SandboxBench) -> None:
    """Links inside the sandbox are never followed out of it, also as parents of the target."""
    outside = bench.scratch / "outside"
    outside.mkdir(mode=0o777)
    local = _file(bench.scratch / "f", b"new")
    tree = _file(bench.scratch / "tree" / "sub" / "leak").parent.parent
    ways = (
        str(outside),
        f"/proc/self/root{outside}",
        f"/proc/1/root{outside}",
        f"/proc/{os.getpid()}/root{outside}",
        f"{'../' * 30}{str(outside)[1:]}",
    )
    async with bench.place() as (sandbox, work):
        for number, way in enumerate(ways):
            await sh(sandbox, f"mkdir {work}/{number} && cd {work}/{number} && "
                              f"ln -s {way} sub && ln -s {way}/leak leak")  # fmt: skip
            for source, target in ((local, "sub/leak"), (local, "leak"), (tree, "")):
                try:
                    await sandbox.upload(source, f"{work}/{number}/{target}".rstrip("/"))
                except SandboxError:
                    continue  # a refusal is a right answer
            require(not list(outside.iterdir()), f"an upload through {way} reached the host")


@check()
async def _local_links_are_copied_as_links(bench: SandboxBench) -> None:
    """Symbolic links in a local tree are copied as links, never followed."""
    secret = _file(bench.scratch / "secret", b"host secret")
    tree = _file(bench.scratch / "tree" / "file").parent
    (tree / "relative").symlink_to("file")
    (tree / "dangling").symlink_to("/no/such/target")
    (tree / "absolute").symlink_to(secret)
    (tree / "directory").symlink_to(bench.scratch)
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/t")
        links = await sh(
            sandbox, f"cd {work}/t && readlink relative dangling absolute directory; cat relative"
        )
        expected = ["file", "/no/such/target", str(secret), str(bench.scratch), "content"]
        equal(links.splitlines(), expected, "links and content")


@check()
async def _hostile_names(bench: SandboxBench) -> None:
    """File names are bytes: line breaks, leading dashes and what is not UTF-8 are kept."""
    names = [b"-rf", b"line\nbreak", b"\xff\xfe", b" space ", "ż".encode(), b"x" * 255, b"*"]
    tree = bench.scratch / "tree"
    for name in names:
        _file(tree / os.fsdecode(name), name)
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/t")
        script = f'cd {work}/t && for f in * .[!.]*; do test -f ./"$f" && printf \'%s|\' "$f"; done'
        found = (await sandbox.exec(script)).stdout.split(b"|")[:-1]
        equal(sorted(found), sorted(names), "names inside")


@check()
async def _many_files(bench: SandboxBench) -> None:
    """A tree of many files is copied whole, quickly."""
    tree = bench.scratch / "tree"
    for number in range(500):
        _file(tree / f"d{number % 20}" / f"f{number}", str(number).encode())
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/t")
        script = f"cd {work}/t && set -- */* && echo $# && cat d7/f467"
        equal((await sh(sandbox, script)).split(), ["500", "467"], "files and one content")


@check()
async def _file_below_a_file_is_refused(bench: SandboxBench) -> None:
    """Raises SandboxError where the inside refuses: a parent is a regular file."""
    local = _file(bench.scratch / "f")
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"echo x > {work}/plain")
        with raises(SandboxError, doing="uploading below a regular file"):
            await sandbox.upload(local, f"{work}/plain/f")
        equal(await sh(sandbox, f"cat {work}/plain"), "x", "the file in the way")


UPLOAD_CHECKS = (
    _file_content_and_mode,
    _big_file,
    _empty_file_and_directory,
    _parents_are_made,
    _directory_is_merged,
    _clear_removes_what_stood_there,
    _clear_removes_a_link_itself,
    _clear_runs_no_program_of_the_inside,
    _mode_is_set_on_files,
    _owner,
    _planted_link_is_replaced,
    _planted_fifo_is_replaced,
    _planted_parents_do_not_reach_the_host,
    _local_links_are_copied_as_links,
    _hostile_names,
    _many_files,
    _file_below_a_file_is_refused,
)
"""Checks of `Sandbox.upload`."""
