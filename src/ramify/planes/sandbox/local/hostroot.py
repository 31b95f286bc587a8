"""The host's own system directories as the base of sandboxes, with everything private hidden.

A sandbox on the host's root has a root directory of our own (the *skeleton*: empty standard
directories, the host's top-level links) and in it, each as an overlay, the host's system
directories. Nothing else of the host is let through, and between an overlay's changes and the
host's directory lies a *mask* layer, with whiteouts for what not every user may read, places
known for credentials, the store, Ramify's own source and the engine's working directory.

What is mounted below such a directory is not let through either. Without root that has a price:
overlayfs refuses a directory with mounts that a user namespace must not uncover (a container's
/etc/hosts). /etc is copied then; any other is shown read-only, with nothing laid over what is
hidden (`launch`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ramify.contracts.scratch import Scratch
from ramify.planes.sandbox.local.launch import SYSTEM_FILES
from ramify.planes.sandbox.local.masking import mounts_below, whiteouts

_SYSTEM = ("usr", "etc", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix")
_SKELETON = {
    **dict.fromkeys(("boot", "dev", "home", "media", "mnt", "proc", "run", "srv", "sys"), 0o755),
    **dict.fromkeys(("var", "var/cache", "var/lib", "var/log", "var/spool"), 0o755),
    "root": 0o711,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
}
_CREDENTIALS = (
    *("shadow", "shadow-", "gshadow", "gshadow-", "sudoers", "sudoers.d", "ssh", "ssl/private"),
    *("docker", "pip.conf", "npmrc", "netrc", "gitconfig", "apt/auth.conf", "apt/auth.conf.d"),
    *("kubernetes", "rancher", "letsencrypt", "wireguard", "krb5.keytab", "environment", "fstab"),
    *("NetworkManager/system-connections", "openvpn", "ppp", "security/opasswd", "boto.cfg"),
)
_SEARCHED = ("etc", "opt", "usr/local", "usr/etc")
_MOST_ENTRIES = 100_000
_COPIED = ("etc",)
_WRITABLE = ("usr/local/bin", "usr/local/lib", "usr/local/share", "usr/local/sbin")


class Part(NamedTuple):
    """One overlay of a root: where it is mounted ("" is the root itself), the layers below.

    `inside` names its share of an image's layers and of a sandbox's changes.
    """

    inside: str
    below: tuple[str, ...]
    target: str = ""


class HostBase(msgspec.Struct, frozen=True):
    """A base for sandboxes: its overlays in mounting order, and what is shown read-only."""

    digest: str
    parts: tuple[Part, ...]
    binds: tuple[str, ...]
    path_entries: tuple[str, ...]


_decoder = msgspec.json.Decoder(HostBase)


def host_base(masks: Path, private: Iterable[Path], trusted_xattrs: bool) -> HostBase:
    """The base for this host as it is now; built once, then found again.

    Args:
        masks: the store's directory for such bases.
        private: further places to hide (the store, the engine's working directory).
        trusted_xattrs: whether this process may set `trusted.*` attributes (real root).

    Raises: OSError, StoreError (the directory cannot be written).
    """
    hidden = sorted({*(str(p.resolve()) for p in private), *_own_places()})
    names = [name for name in _SYSTEM if os.path.isdir(f"/{name}")]
    names = [name for name in names if not os.path.realpath(masks).startswith(f"/{name}/")]
    links = {name: os.readlink(f"/{name}") for name in names if os.path.islink(f"/{name}")}
    names = [name for name in names if name not in links]
    binds, path_entries = _interpreter()
    stamps = [os.stat(f"/{name}").st_mtime_ns for name in names]
    copied = dict[str, list[str]]()
    if not trusted_xattrs:
        copied = {name: found for name in _COPIED if (found := mounts_below(f"/{name}"))}
    stamps += [stamp for name in copied for stamp in _stamps(name)]
    facts = repr((names, links, stamps, hidden, binds, trusted_xattrs, os.geteuid(), copied, "v3"))
    digest = hashlib.sha256(facts.encode()).hexdigest()
    place = masks / digest[:16]
    if not place.is_dir():
        parts = [Part("root", (str(place / "root"),))]
        for name in names:
            below = (str(place / name), *(() if name in copied else (f"/{name}",)))
            parts.append(Part(name, below, name))
        base = HostBase(digest, tuple(parts), binds, path_entries)
        with Scratch(masks) as scratch:
            try:
                _build(scratch / "base", names, links, hidden, base)
                for name, mounted in copied.items():
                    _fill(scratch / "base", name, frozenset(mounted))
                (scratch / "base").rename(place)
            except OSError:
                if not place.is_dir():  # else another engine was faster with the same one
                    raise
    return found_base(place)


def found_base(place: Path) -> HostBase:
    """A base that was built before. Raises FileNotFoundError."""
    return _decoder.decode((place / "base.json").read_bytes())


def _own_places() -> set[str]:
    """Ramify's package, its project and its virtual environment."""
    package = Path(__file__).resolve().parents[3]
    places = {str(package)}
    project = package.parent.parent
    if (project / "pyproject.toml").is_file():
        places.add(str(project))
    if sys.prefix != sys.base_prefix:
        places.add(os.path.realpath(sys.prefix))
    return places


def _interpreter() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The interpreter that runs us, where it is not part of the system directories."""
    prefix = os.path.realpath(sys.base_prefix)
    if prefix == "/" or prefix.split("/")[1] in _SYSTEM:
        return (), ()
    return (prefix,), (f"{prefix}/bin",)


def _build(
    fresh: Path, names: list[str], links: dict[str, str], hidden: list[str], base: HostBase
) -> None:
    root = fresh / "root"
    for directory in (fresh, root):
        directory.mkdir(mode=0o755)
    for name, mode in _SKELETON.items():
        _make_directory(root / name, mode)
    (root / "var" / "run").symlink_to("/run")
    for name, target in links.items():
        (root / name).symlink_to(target)
    for place in base.binds:
        _make_directories(root, place)
    for name in names:
        _make_directory(root / name, 0o755)
        _mask_directory(fresh, name)
    for name in _CREDENTIALS:
        for prefix in ("etc", "usr/etc", "usr/local/etc"):
            _hide(fresh, f"{prefix}/{name}")
    for name in _SEARCHED:
        _hide_unreadable(fresh, name)
    for place in hidden:
        if place.split("/")[1] in names:
            _hide(fresh, place.lstrip("/"))
    for name in _WRITABLE:
        if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"):
            _mask_directory(fresh, name)
    for name, text in SYSTEM_FILES.items():
        file = fresh / "etc" / name
        file.unlink(missing_ok=True)
        file.write_text(text)
        file.chmod(0o644)
    (fresh / "base.json").write_bytes(msgspec.json.encode(base))


def _make_directories(root: Path, place: str) -> None:
    for part in Path(place.lstrip("/")).parts:
        root /= part
        if not root.is_dir():
            _make_directory(root, 0o755)


def _make_directory(at: Path, mode: int) -> None:
    at.mkdir()
    at.chmod(mode)


def _mask_directory(mask: Path, name: str) -> Path:
    """A directory of the mask, merged with the host's; its own attributes are those seen."""
    at, host = mask, Path("/")
    for part in Path(name).parts:
        at, host = at / part, host / part
        if not at.is_dir():
            _make_directory(at, stat.S_IMODE(host.stat().st_mode))
    return at


def _hide(mask: Path, name: str) -> None:
    """Make a path of the host be gone: a whiteout, which nothing inside can undo."""
    if not os.path.lexists(f"/{name}"):
        return
    path = Path(name)
    for parent in path.parents:
        if os.path.lexists(mask / parent) and not (mask / parent).is_dir():
            return  # all of it is hidden already
    at = _mask_directory(mask, str(path.parent)) / path.name
    if at.is_dir():
        shutil.rmtree(at)
    if not os.path.lexists(at):
        os.mknod(at, 0o600 | stat.S_IFCHR, os.makedev(0, 0))


def _hide_unreadable(mask: Path, top: str) -> None:
    """Hide what not every user may read below a directory; all of it if that cannot be told."""
    pending, seen = [top], 0
    while pending:
        name = pending.pop()
        try:
            entries = list(os.scandir(f"/{name}"))
        except FileNotFoundError:
            continue
        except PermissionError:
            _hide(mask, name)
            continue
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            path = f"{name}/{entry.name}"
            if stat.S_ISDIR(mode):
                if mode & 0o005 != 0o005:
                    _hide(mask, path)
                else:
                    pending.append(path)
            elif stat.S_ISREG(mode):
                if not mode & 0o004:
                    _hide(mask, path)
            elif not stat.S_ISLNK(mode):
                _hide(mask, path)
        seen += len(entries)
        if seen > _MOST_ENTRIES:
            _hide(mask, top)
            return


def _stamps(top: str) -> Iterator[int]:
    """What changes when anything below a directory does."""
    for place, _, names in os.walk(f"/{top}"):
        for name in (".", *names):
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(place, name)).st_mtime_ns


def _fill(mask: Path, top: str, mounted: Set[str]) -> None:
    """Make a directory of the mask hold what would be seen through it, without what is mounted."""
    pending = [top]
    while pending:
        name = pending.pop()
        for entry in os.scandir(f"/{name}"):
            path = f"{name}/{entry.name}"
            at = mask / path
            if f"/{path}" in mounted or (os.path.lexists(at) and not at.is_dir()):
                continue
            if entry.is_symlink():
                at.symlink_to(os.readlink(entry))
            elif entry.is_dir():
                if not at.is_dir():
                    _make_directory(at, stat.S_IMODE(entry.stat().st_mode))
                pending.append(path)
            else:
                shutil.copyfile(entry, at)
                at.chmod(stat.S_IMODE(entry.stat().st_mode))
    for path in whiteouts(str(mask / top)):  # they mean nothing in the lowest layer
        os.unlink(path)
