"""Checks of `Sandbox.download`: what crosses, and how hostile trees are held back."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ramify.contracts.errors import SandboxError, TransferLimitError
from ramify.contracts.sandbox import MIB, Sandbox, TransferLimits, TransferReport
from ramify.testing.check import (
    CheckSkipped,
    ConformanceError,
    check,
    equal,
    raises,
    require,
    within,
)
from ramify.testing.sandbox_bench import SandboxBench, sh

SECRET = b"content of a file outside the tree"
INSIDE = TransferLimits(links="inside")


async def _fetch(
    sandbox: Sandbox, remote: str, local: Path, limits: TransferLimits | None = None
) -> TransferReport:
    """Download within 5 seconds, then require what holds for every download."""
    with within(5, f"downloading {remote}"):
        report = await sandbox.download(remote, local, limits=limits)
    _examine(local, links=limits is not None and limits.links == "inside")
    return report


def _examine(local: Path, *, links: bool) -> None:
    top = os.path.realpath(local)
    for path in (local, *local.rglob("*")):
        mode = path.lstat().st_mode
        kind = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        require(kind, f"{path} is neither file, directory nor link: {oct(mode)}")
        if stat.S_ISLNK(mode):
            require(links, f"{path} is a link")
            target = os.path.realpath(path)
            inside = target == top or target.startswith(f"{top}/")
            require(inside, f"the link {path} leads out of the tree, to {target}")
        elif stat.S_ISREG(mode):
            require(not mode & 0o6000, f"{path} has set-id bits: {oct(mode)}")
            require(SECRET not in path.read_bytes(), f"{path} holds what a link pointed to")


def _names(local: Path) -> list[str]:
    return sorted(str(path.relative_to(local)) for path in local.rglob("*"))


@check()
async def _file(bench: SandboxBench) -> None:
    """A file is copied to the host path `local`, byte for byte."""
    octal = "".join(f"\\{byte:03o}" for byte in range(256))
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"printf '{octal}' > {work}/f")
        report = await _fetch(sandbox, f"{work}/f", bench.scratch / "f")
        equal((bench.scratch / "f").read_bytes(), bytes(range(256)), "content")
        equal((report.files, report.bytes, report.dropped_count), (1, 256, 0), "report")


@check()
async def _directory(bench: SandboxBench) -> None:
    """The content of a directory is copied to `local`, empty directories and files included."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkdir -p a/b empty && printf 1 > a/b/f && : > nil")
        report = await _fetch(sandbox, work, local)
        equal(_names(local), ["a", "a/b", "a/b/f", "empty", "nil"], "names")
        equal((local / "a/b/f").read_bytes(), b"1", "content")
        equal((report.files, report.bytes), (2, 1), "report")


@check()
async def _missing(bench: SandboxBench) -> None:
    """Raises FileNotFoundError: no such `remote`."""
    async with bench.place() as (sandbox, work):
        for remote in (f"{work}/absent", f"{work}/absent/below"):
            with raises(FileNotFoundError, doing=f"downloading {remote}, which does not exist"):
                await sandbox.download(remote, bench.scratch / "x")


@check()
async def _neither_file_nor_directory(bench: SandboxBench) -> None:
    """Raises FileNotFoundError: `remote` is not a file or directory; a FIFO does not block."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkfifo fifo && echo x > f && ln -s f link")
        for remote in (f"{work}/fifo", f"{work}/link", "/dev/zero"):
            with within(3, f"downloading {remote}"):
                with raises(FileNotFoundError, doing=f"downloading {remote}"):
                    await sandbox.download(remote, bench.scratch / "x")


@check()
async def _links_are_dropped(bench: SandboxBench) -> None:
    """No link is followed; by default every link is left out, and reported."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"cd {work} && mkdir t && printf '{SECRET.decode()}' > secret && cd t && echo x > f && "
            f"ln -s {work}/secret absolute && ln -s ../secret up && ln -s .. dir && "
            "ln -s f inner && ln -s /etc etc && ln -s nowhere dangling && ln -s /proc/self/root r",
        )
        report = await _fetch(sandbox, f"{work}/t", local)
        equal(_names(local), ["f"], "what crossed")
        equal((report.files, report.dropped_count, len(report.dropped)), (1, 7, 7), "report")


@check()
async def _links_inside_are_kept(bench: SandboxBench) -> None:
    """links="inside" keeps relative links that stay within the tree, and no others."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"cd {work} && mkdir -p t/d && printf '{SECRET.decode()}' > secret && cd t && "
            f"echo x > f && ln -s f same && ln -s ../f d/up && ln -s d dir && "
            f"ln -s {work}/t/f absolute && ln -s ../secret out && ln -s d/../../secret out2",
        )
        report = await _fetch(sandbox, f"{work}/t", local, INSIDE)
        equal(_names(local), ["d", "d/up", "dir", "f", "same"], "what crossed")
        equal(os.readlink(local / "d/up"), "../f", "a link's target")
        equal(report.dropped_count, 3, "dropped_count")


@check()
async def _links_together_do_not_escape(bench: SandboxBench) -> None:
    """Links that stay inside one by one, but lead out together, are not kept."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"cd {work} && mkdir -p t/a/b/c && cd t && ln -s a/b/c deep && "
            "ln -s .. a/b/c/up && ln -s . a/here && ln -s a/here/../../.. out1 && "
            "ln -s deep/../../../.. out2 && ln -s here a/again && mkdir d && "
            "ln -s ../.. d/top && ln -s d e && ln -s e/../.. out3",
        )
        await _fetch(sandbox, f"{work}/t", local, INSIDE)


@check()
async def _link_cycles(bench: SandboxBench) -> None:
    """Link cycles end."""
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"cd {work} && mkdir d && ln -s . self && ln -s ../d d/d && ln -s b a && ln -s a b && "
            "ln -s .. d/up && echo x > d/f",
        )
        await _fetch(sandbox, work, bench.scratch / "dropped")
        equal(_names(bench.scratch / "dropped"), ["d", "d/f"], "what crossed without links")
        with within(5, "downloading link cycles"):
            await sandbox.download(work, bench.scratch / "kept", limits=INSIDE)
        require((bench.scratch / "kept/d/f").is_file(), "the file beside the links must cross")


@check()
async def _fifo_does_not_block(bench: SandboxBench) -> None:
    """Special files do not block, and are left out."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkfifo a z && echo x > m")
        report = await _fetch(sandbox, work, local)
        equal(_names(local), ["m"], "what crossed")
        equal(report.dropped_count, 2, "dropped_count")


@check()
async def _devices_are_left_out(bench: SandboxBench) -> None:
    """Devices are left out: not made on the host, not read."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        made = await sandbox.exec(f"cd {work} && mknod zero c 1 5 && mknod disk b 7 0")
        await sh(sandbox, f"echo x > {work}/f")
        if not made.ok:
            raise CheckSkipped("the inside may not make devices")
        report = await _fetch(sandbox, work, local)
        equal((_names(local), report.dropped_count), (["f"], 2), "what crossed")


@check()
async def _sparse_giant_is_refused(bench: SandboxBench) -> None:
    """A file above max_file_bytes raises TransferLimitError, soon, however sparse it is."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"truncate -s 8G {work}/giant")
        with within(5, "refusing a sparse file of 8 GiB"):
            with raises(TransferLimitError, doing="downloading a file of 8 GiB"):
                await sandbox.download(work, local)
        left = sum(path.lstat().st_blocks * 512 for path in local.rglob("*"))
        require(left <= 1024 * MIB, f"{left // MIB} MiB were written before the refusal")


@check()
async def _total_bytes_are_limited(bench: SandboxBench) -> None:
    """Files that together exceed max_bytes raise TransferLimitError."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && for i in 1 2 3 4; do head -c 1M /dev/zero > $i; done")
        with raises(TransferLimitError, doing="downloading 4 MiB with max_bytes of 3 MiB"):
            await sandbox.download(work, bench.scratch / "t", limits=TransferLimits(3 * MIB))
        report = await _fetch(sandbox, work, bench.scratch / "u", TransferLimits(5 * MIB))
        equal((report.files, report.bytes), (4, 4 * MIB), "report within the limit")


@check()
async def _entries_are_limited(bench: SandboxBench) -> None:
    """More entries than max_entries raise TransferLimitError, directories and links counted."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && seq 1 300 | while read i; do : > f$i; done")
        with raises(TransferLimitError, doing="downloading 300 entries with max_entries of 200"):
            limits = TransferLimits(max_entries=200)
            await sandbox.download(work, bench.scratch / "t", limits=limits)


@check()
async def _depth_is_limited(bench: SandboxBench) -> None:
    """A tree deeper than max_depth raises TransferLimitError."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"mkdir -p {work}/{'/'.join('d' * 30)}")
        with raises(TransferLimitError, doing="downloading 30 levels with max_depth of 20"):
            limits = TransferLimits(max_depth=20)
            await sandbox.download(work, bench.scratch / "t", limits=limits)


@check()
async def _hard_links_become_copies(bench: SandboxBench) -> None:
    """Hard links become copies."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkdir d && echo same > a && ln a b && ln a d/c")
        await _fetch(sandbox, work, local)
        for name in ("a", "b", "d/c"):
            equal((local / name).read_bytes(), b"same\n", f"content of {name}")
            equal((local / name).stat().st_nlink, 1, f"links of {name}")


@check()
async def _set_id_bits_are_cleared(bench: SandboxBench) -> None:
    """Set-id bits are cleared, on files and directories."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && mkdir d && echo x > f && chmod 6755 f && chmod 2755 d")
        await _fetch(sandbox, work, local)
        for name in ("f", "d"):
            equal((local / name).stat().st_mode & 0o6000, 0, f"set-id bits of {name}")


@check(timeout_sec=40)
async def _swapped_while_reading(bench: SandboxBench) -> None:
    """A directory that is replaced by a link while it is read leads nowhere else."""
    swap = (
        "while :; do mv d e; ln -s ../outside d; rm d; mv e d; "
        "mv f g; ln -s ../outside/secret f; rm f; mv g f; done"
    )
    async with bench.place() as (sandbox, work):
        await sh(
            sandbox,
            f"cd {work} && mkdir -p outside t/d && printf '{SECRET.decode()}' > outside/secret && "
            "cp outside/secret outside/f1 && cd t && echo x > f && "
            "for i in 1 2 3 4 5 6 7 8 9; do echo x > d/f$i; done; echo x > d/secret",
        )
        process = await sandbox.spawn(swap, cwd=f"{work}/t")
        try:
            for number in range(8):
                try:
                    await _fetch(sandbox, f"{work}/t", bench.scratch / str(number), INSIDE)
                except (FileNotFoundError, SandboxError):
                    continue  # a tree that changes under the reader may be refused
        finally:
            await process.aclose()


@check("isolation")
async def _links_do_not_reach_the_host(bench: SandboxBench) -> None:
    """No link is followed to the engine's file system, also as a parent of `remote`."""
    (bench.scratch / "host").mkdir()
    (bench.scratch / "host" / "secret").write_bytes(SECRET)
    host = bench.scratch / "host"
    async with bench.place() as (sandbox, work):
        for number, way in enumerate((host, f"/proc/self/root{host}", f"/proc/1/root{host}")):
            await sh(sandbox, f"ln -s {way} {work}/{number}")
            for remote in (f"{work}/{number}/secret", f"{work}/{number}"):
                local = bench.scratch / "got"
                try:
                    await _fetch(sandbox, remote, local)
                except FileNotFoundError:
                    continue
                raise ConformanceError(f"{remote}, a way to the host, could be downloaded")


@check()
async def _hostile_names(bench: SandboxBench) -> None:
    """File names are bytes: line breaks, leading dashes and what is not UTF-8 are kept."""
    local = bench.scratch / "tree"
    async with bench.place() as (sandbox, work):
        script = f"cd {work} && : > ./-rf; : > 'a\nb'; : > ' '; : > '*'; : > \"$(printf '\\377')\""
        await sh(sandbox, script)
        await _fetch(sandbox, work, local)
        names = sorted(os.listdir(os.fsencode(local)))
        equal(names, [b" ", b"*", b"-rf", b"a\nb", b"\xff"], "names")


@check()
async def _dropped_list_is_bounded(bench: SandboxBench) -> None:
    """The report names up to 100 dropped entries and counts them all."""
    async with bench.place() as (sandbox, work):
        await sh(sandbox, f"cd {work} && seq 1 130 | while read i; do ln -s x l$i; done")
        report = await _fetch(sandbox, work, bench.scratch / "tree")
        equal((len(report.dropped), report.dropped_count), (100, 130), "dropped")


@check()
async def _round_trip(bench: SandboxBench) -> None:
    """What was uploaded comes back the same."""
    tree = bench.scratch / "tree"
    for number in range(60):
        path = tree / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * number * 500)
    async with bench.place() as (sandbox, work):
        await sandbox.upload(tree, f"{work}/t")
        await _fetch(sandbox, f"{work}/t", bench.scratch / "back")
        equal(_names(bench.scratch / "back"), _names(tree), "names")
        for path in tree.rglob("f*"):
            back = bench.scratch / "back" / path.relative_to(tree)
            equal(back.read_bytes(), path.read_bytes(), f"content of {path.name}")


DOWNLOAD_CHECKS = (
    _file,
    _directory,
    _missing,
    _neither_file_nor_directory,
    _links_are_dropped,
    _links_inside_are_kept,
    _links_together_do_not_escape,
    _link_cycles,
    _fifo_does_not_block,
    _devices_are_left_out,
    _sparse_giant_is_refused,
    _total_bytes_are_limited,
    _entries_are_limited,
    _depth_is_limited,
    _hard_links_become_copies,
    _set_id_bits_are_cleared,
    _swapped_while_reading,
    _links_do_not_reach_the_host,
    _hostile_names,
    _dropped_list_is_bounded,
    _round_trip,
)
"""Checks of `Sandbox.download`."""
