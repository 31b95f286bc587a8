"""Checks of `SandboxSpec.mounts` and `read_only`, and of users that no file inside knows."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.frozen import Freezable
from ramify.contracts.sandbox import Mount, Sandbox, SandboxSpec
from ramify.testing.check import CheckSkipped, check, equal, raises, require
from ramify.testing.sandbox_bench import SandboxBench, sh

_AT = "/srv/conformance/given"
_ODD = "odd , : \\ \n name"
_CANNOT_RUN = 126
_FOREIGN = "54321:54322"


def _mounted(bench: SandboxBench, *mounts: Mount, read_only: bool = False) -> SandboxSpec:
    return msgspec.structs.replace(bench.spec, mounts=mounts, read_only=read_only)


def _place(bench: SandboxBench, name: str) -> Path:
    place = bench.scratch.resolve() / name
    place.mkdir(parents=True)
    return place


def _source(bench: SandboxBench) -> Path:
    """A tree with a file, a directory with a file, a link and odd names; its path is odd, too."""
    source = _place(bench, "source , : \\ x")
    (source / "file").write_text("original")
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "leaf").write_text("leaf")
    (source / "link").symlink_to("file")
    (source / _ODD).write_text("odd")
    return source


def _cow(bench: SandboxBench, source: Path, number: int = 0) -> tuple[Mount, Path]:
    """A copy-on-write mount of a source, and where its changes will be."""
    scratch = _place(bench, f"scratch , : \\ {number}")
    return Mount(str(source), _AT, "cow", str(scratch)), scratch / "upper"


def _tree(place: Path) -> dict[str, str]:
    """What a tree holds: path → kind, mode and content."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        info = path.lstat()
        content = ""
        if stat.S_ISLNK(info.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(info.st_mode):
            content = path.read_text()
        found[str(path.relative_to(place))] = f"{info.st_mode:o} {content}"
    return found


def _mount_table() -> str:
    return Path("/proc/self/mounts").read_text()


async def _owner(sandbox: Sandbox, path: str = _AT) -> str:
    return await sh(sandbox, f"stat -c %u:%g {path}")


async def _refused(sandbox: Sandbox, script: str, reason: bytes = b"") -> None:
    result = await sandbox.exec(script, timeout_sec=20)
    require(result.exit_code != 0, f"`{script}` must fail inside")
    require(reason in result.stderr, f"`{script}` failed with {result.stderr[-200:]!r}")


@check("mounts.ro")
async def _ro_is_read_only(bench: SandboxBench) -> None:
    """`ro`: it is read as it is, and writing fails with EROFS, for root as well."""
    source = _source(bench)
    before = _tree(source)
    async with bench.sandbox(_mounted(bench, Mount(str(source), _AT))) as sandbox:
        equal(await sh(sandbox, f"cat {_AT}/link {_AT}/deep/er/leaf"), "originalleaf", "content")
        for script in (
            f"echo x > {_AT}/file",
            f"touch {_AT}/new",
            f"rm {_AT}/file",
            f"mkdir {_AT}/deep/more",
            f"chmod 777 {_AT}/file",
            f"mv {_AT}/file {_AT}/moved",
        ):
            await _refused(sandbox, script, b"Read-only file system")
    equal(_tree(source), before, "the source afterwards")


@check("mounts.rw")
async def _rw_reaches_the_source(bench: SandboxBench) -> None:
    """`rw`: what is written inside stands in the source, at once and after the end."""
    source = _source(bench)
    async with bench.sandbox(_mounted(bench, Mount(str(source), _AT, "rw"))) as sandbox:
        owner = await _owner(sandbox)
        await sh(sandbox, f"echo -n new > {_AT}/made; rm -r {_AT}/deep", user=owner)
        equal((source / "made").read_text(), "new", "a file that was made inside")
        (source / "from-here").write_text("here")
        equal(await sh(sandbox, f"cat {_AT}/from-here"), "here", "a file that was made outside")
    require(not (source / "deep").exists(), "what was removed inside must be gone")
    equal(os.stat(source / "made").st_uid, os.stat(source).st_uid, "owner of the new file")


@check("mounts.cow")
async def _cow_writes_freely(bench: SandboxBench) -> None:
    """`cow`: the inside writes, renames, changes modes and removes, and sees that."""
    source = _source(bench)
    before = _tree(source)
    mount, _upper = _cow(bench, source)
    async with bench.sandbox(_mounted(bench, mount)) as sandbox:
        owner = await _owner(sandbox)
        await sh(
            sandbox,
            f"cd {_AT} && echo -n more >> file && chmod 600 link && mv deep/er/leaf top && rm odd*"
            " && mkdir new && echo -n in > new/in && mv new newer && rm link && rm -r deep"
            " && mkdir deep && touch deep/other",
            user=owner,
        )
        seen = await sh(sandbox, f"cd {_AT} && find . | LC_ALL=C sort && cat file top newer/in")
        expected = "originalmoreleafin"
        paths = [".", "./deep", "./deep/other", "./file", "./newer", "./newer/in", "./top"]
        equal(seen, "\n".join([*paths, expected]), "what the inside sees")
        equal(await sh(sandbox, f"stat -c %a {_AT}/file"), "600", "the mode that was set")
    equal(_tree(source), before, "the source afterwards")


@check("mounts.cow")
async def _cow_keeps_changes_in_upper(bench: SandboxBench) -> None:
    """`cow`: what was written lies in scratch/upper, whole; a removed name is a device 0:0."""
    source = _source(bench)
    mount, upper = _cow(bench, source)
    async with bench.sandbox(_mounted(bench, mount)) as sandbox:
        owner = await _owner(sandbox)
        await sh(
            sandbox,
            f"cd {_AT} && chmod 600 file && rm link && echo -n new > deep/new && cat deep/er/leaf",
            user=owner,
        )
        for when in ("while it runs", "afterwards"):
            found = {str(path.relative_to(upper)) for path in upper.rglob("*")}
            equal(found, {"file", "link", "deep", "deep/new"}, f"names in upper {when}")
            equal((upper / "file").read_text(), "original", "a file whose mode was changed")
            equal(stat.S_IMODE((upper / "file").stat().st_mode), 0o600, "its mode")
            equal((upper / "deep" / "new").read_text(), "new", "a file that was made")
            gone = (upper / "link").lstat()
            removed = stat.S_ISCHR(gone.st_mode) and gone.st_rdev == 0
            require(removed, f"a removed name is a device 0:0, not {gone}")
            if when == "while it runs":
                await sandbox.teardown()
    equal(os.listdir(upper.parent), ["upper"], "what is left in the scratch")
    require(bench.scratch.name not in _mount_table(), "something is mounted on the host")


@check("mounts.cow")
async def _cow_side_by_side(bench: SandboxBench) -> None:
    """`cow`: sandboxes over one source do not see what the others write."""
    source = _source(bench)
    (one, _), (two, _) = _cow(bench, source, 1), _cow(bench, source, 2)
    async with bench.sandbox(_mounted(bench, one)) as a, bench.sandbox(_mounted(bench, two)) as b:
        owner = await _owner(a)
        await sh(a, f"echo -n mine > {_AT}/file", user=owner)
        equal(await sh(b, f"cat {_AT}/file"), "original", "what the other one sees")
        await sh(b, f"rm {_AT}/file", user=owner)
        equal(await sh(a, f"cat {_AT}/file"), "mine", "what the first one sees")


@check("mounts.cow")
async def _owners_are_usable(bench: SandboxBench) -> None:
    """Files have an owner inside that can use them, also where no account file knows it."""
    source = _source(bench)
    (source / "private").write_text("mine")
    (source / "private").chmod(0o600)
    mount, _upper = _cow(bench, source)
    async with bench.sandbox(_mounted(bench, mount)) as sandbox:
        owner = await _owner(sandbox)
        equal(await _owner(sandbox, f"{_AT}/deep/er/leaf"), owner, "owner of a file in it")
        script = f"cd {_AT}/deep/er && cat ../../private && mv leaf l && touch t && chmod 400 t"
        equal(await sh(sandbox, script, user=owner), "mine", "a private file")
        equal(await _owner(sandbox, f"{_AT}/deep/er/t"), owner, "owner of a new file")


@check("mounts.cow")
async def _set_id_means_nothing(bench: SandboxBench) -> None:
    """Set-id bits in a mount give nobody another user."""
    source = _source(bench)
    mount, _upper = _cow(bench, source)
    async with bench.sandbox(_mounted(bench, mount)) as sandbox:
        made = f"cp /usr/bin/id {_AT}/id && chown 0:0 {_AT}/id && chmod 6755 {_AT}/id"
        await sh(sandbox, f"chmod 755 {_AT}; {made}")
        result = await sandbox.exec(f"{_AT}/id -u", user=_FOREIGN, timeout_sec=20)
        if result.exit_code == _CANNOT_RUN:
            raise CheckSkipped("there are no other users inside")
        equal(result.stdout.strip(), _FOREIGN.partition(":")[0].encode(), "effective user")


@check("mounts.ro", "mounts.rw")
async def _laid_in_order(bench: SandboxBench) -> None:
    """`mounts` are laid over the root in order; missing directories are made."""
    outer, inner = _place(bench, "outer"), _place(bench, "inner")
    (outer / "hidden").mkdir()
    (outer / "hidden" / "x").write_text("x")
    (inner / "y").write_text("y")
    mounts = (Mount(str(outer), _AT, "ro"), Mount(str(inner), f"{_AT}/hidden", "rw"))
    async with bench.sandbox(_mounted(bench, *mounts)) as sandbox:
        equal(await sh(sandbox, f"ls {_AT}/hidden"), "y", "the inner one")
        owner = await _owner(sandbox, f"{_AT}/hidden")
        await sh(sandbox, f"echo -n z > {_AT}/hidden/z", user=owner)
        await _refused(sandbox, f"touch {_AT}/new", b"Read-only file system")
    equal((inner / "z").read_text(), "z", "what was written to the inner one")


@check("mounts.rw", "isolation")
async def _links_lead_nowhere_outside(bench: SandboxBench) -> None:
    """A link on the way to a target means what it means inside."""
    outer, inner = _place(bench, "outer"), _place(bench, "inner")
    outside = _place(bench, "outside")
    (outer / "link").symlink_to(outside)
    mounts = (Mount(str(outer), _AT, "rw"), Mount(str(inner), f"{_AT}/link/deep", "rw"))
    try:
        async with bench.sandbox(_mounted(bench, *mounts)) as sandbox:
            await sh(sandbox, f"touch {outside}/deep/made")
        equal(os.listdir(inner), ["made"], "what was written through the link inside")
    finally:
        equal(os.listdir(outside), [], "the directory of the host that the link names")


@check("mounts.ro", "mounts.rw", "isolation")
async def _read_only_root(bench: SandboxBench) -> None:
    """With `read_only` nothing but mounts, /dev/shm and devices can be written to."""
    out = _place(bench, "out")
    spec = _mounted(bench, Mount(str(out), _AT, "rw"), read_only=True)
    async with bench.sandbox(spec) as sandbox:
        names = "/ /usr /usr/bin /etc /tmp /var /var/tmp /root /home /opt /srv"
        left = await sh(sandbox, f"for d in {names}; do touch $d/x 2>&- && echo $d; done; :")
        equal(left, "", "directories that can be written to")
        await _refused(sandbox, "echo x >> /etc/passwd")
        await _refused(sandbox, "rm /etc/passwd")
        await sh(sandbox, "echo x > /dev/shm/x && cat /dev/shm/x && echo x > /dev/null")
        await sh(sandbox, f"echo -n x > {_AT}/x", user=await _owner(sandbox))
        equal((out / "x").read_text(), "x", "what was written to a mount")


@check("mounts.ro")
async def _bad_mounts_are_refused(bench: SandboxBench) -> None:
    """A mount that cannot be meant is a ConfigError, and nothing is made for it."""
    source, scratch = _source(bench), _place(bench, "scratch")
    full = _place(bench, "full")
    (full / "x").touch()
    link = bench.scratch.resolve() / "link"
    link.symlink_to(source)
    inside = source / "deep"
    cow: Literal["cow"] = "cow"
    offered = bench.provider.capabilities().mounts
    bad = [
        Mount("relative", _AT),
        Mount(str(source / "none"), _AT),
        Mount(str(source / "file"), _AT),
        Mount(str(link), _AT),
        Mount(f"{source}/../{source.name}", _AT),
        Mount(str(source), "relative"),
        Mount(str(source), "/"),
        Mount(str(source), "/srv/../etc"),
        Mount(str(source), "/proc/sys"),
        Mount(str(source), "/dev"),
        Mount(str(source), _AT, "ro", str(scratch)),
    ]
    if cow in offered:
        bad += [
            Mount(str(source), _AT, cow),
            Mount(str(source), _AT, cow, "relative"),
            Mount(str(source), _AT, cow, str(full)),
            Mount(str(source), _AT, cow, str(inside)),
            Mount(str(source), _AT, cow, str(link)),
        ]
    for mount in bad:
        with raises(ConfigError, doing=f"create() with {mount}"):
            await (await bench.provider.create(_mounted(bench, mount))).teardown()
    twice = Mount(str(source), _AT)
    with raises(ConfigError, doing="create() with one target twice"):
        await (await bench.provider.create(_mounted(bench, twice, twice))).teardown()
    equal([*os.listdir(scratch), *os.listdir(full)], ["x"], "what the scratch directories hold")


@check("mounts.ro", "freeze")
async def _no_image_with_mounts(bench: SandboxBench) -> None:
    """A sandbox with mounts is not frozen: an image would hold nothing of them."""
    source = _source(bench)
    async with bench.sandbox(_mounted(bench, Mount(str(source), _AT))) as sandbox:
        require(isinstance(sandbox, Freezable), "snapshot is offered, but no freeze()")
        with raises(UnsupportedError, doing="freeze() with mounts"):
            await sandbox.freeze()  # type: ignore[attr-defined]  # required above
        equal(await sh(sandbox, f"cat {_AT}/file"), "original", "it goes on")


@check("isolation")
async def _user_without_an_entry(bench: SandboxBench) -> None:
    """A user may be `uid:gid`, whether or not a file inside knows it."""
    async with bench.sandbox() as sandbox:
        result = await sandbox.exec('echo "$(id -u):$(id -g)"', user=_FOREIGN, timeout_sec=20)
        if result.exit_code == _CANNOT_RUN:
            raise CheckSkipped("there are no other users inside")
        equal(result.stdout.decode().strip(), _FOREIGN, "user and group of a command")
        process = await sandbox.spawn('touch /tmp/theirs; echo "$(id -u):$(id -g)"', user=_FOREIGN)
        equal((await process.read()).decode().strip(), _FOREIGN, "user and group of a process")
        equal(await process.wait(), 0, "exit code")
        equal(await sh(sandbox, "stat -c %u:%g /tmp/theirs"), _FOREIGN, "owner of its file")


MOUNT_CHECKS = (
    _ro_is_read_only,
    _rw_reaches_the_source,
    _cow_writes_freely,
    _cow_keeps_changes_in_upper,
    _cow_side_by_side,
    _owners_are_usable,
    _set_id_means_nothing,
    _laid_in_order,
    _links_lead_nowhere_outside,
    _read_only_root,
    _bad_mounts_are_refused,
    _no_image_with_mounts,
    _user_without_an_entry,
)
"""Checks of mounts, of a read-only root, and of users that nobody knows."""
