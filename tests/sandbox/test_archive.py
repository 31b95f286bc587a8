import ast
import io
import os
import random
import socket
import stat
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import RamifyError, SandboxError, TransferLimitError
from ramify.contracts.sandbox import TransferLimits, TransferReport
from ramify.planes.sandbox import descent, packer, unpacker
from ramify.planes.sandbox.archive import Extractor
from ramify.planes.sandbox.digests import digest_tree
from ramify.planes.sandbox.packing import pack_tree

INSIDE = TransferLimits(links="inside")
Member = tuple[str, dict[str, object]]


def make_tar(members: list[Member], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of `(name, attributes)`; the attribute `data` gives content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=fmt) as tar:
        for name, attributes in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            data = attributes.get("data")
            for key, value in attributes.items():
                if key != "data":
                    setattr(info, key, value)
            if isinstance(data, bytes):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


def link(target: str) -> dict[str, object]:
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target: str) -> dict[str, object]:
    return {"type": tarfile.LNKTYPE, "linkname": target}


FOLDER: dict[str, object] = {"type": tarfile.DIRTYPE, "mode": 0o755}


def extract(
    data: bytes, dest: Path, limits: TransferLimits | None = None, step: int = 65536, strip: int = 0
) -> TransferReport:
    with Extractor(dest, limits, strip=strip) as extractor:
        for at in range(0, len(data), step):
            extractor.feed(data[at : at + step])
        return extractor.finish()


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """A destination with something precious beside it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("precious")
    return tmp_path / "dest"


def untouched(dest: Path) -> bool:
    outside = dest.parent / "outside"
    return (
        sorted(os.listdir(dest.parent)) in (["dest", "outside"], ["outside"])
        and os.listdir(outside) == ["secret"]
        and (outside / "secret").read_text() == "precious"
        and (outside / "secret").stat().st_nlink == 1
    )


def names(dest: Path) -> set[str]:
    return {str(path.relative_to(dest)) for path in dest.rglob("*")}


def pack_inside(path: Path | str, limits: packer.Limits | None = None) -> tuple[int, str, bytes]:
    limits = limits or packer.Limits(100_000, 1 << 30, 1 << 30, 64)
    read_fd, write_fd = os.pipe()
    status: list[tuple[int, str]] = []

    def run() -> None:
        try:
            status.append(packer.pack(str(path), write_fd, limits))
        finally:
            os.close(write_fd)

    thread = threading.Thread(target=run)
    thread.start()
    with open(read_fd, "rb") as source:
        data = source.read()
    thread.join()
    return (*status[0], data)


def unpack_inside(stream: bytes, path: Path, **options: object) -> tuple[int, str]:
    read_fd, write_fd = os.pipe()

    def run() -> None:
        with open(write_fd, "wb") as sink:
            with suppress(BrokenPipeError):
                sink.write(stream)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        me = (os.getuid(), os.getgid())
        return unpacker.unpack(read_fd, str(path), *me, **options)  # type: ignore[arg-type]
    finally:
        os.close(read_fd)
        thread.join()


# What a hostile archive may try

ESCAPES: dict[str, list[Member]] = {
    "absolute": [("/tmp/outside-abs", {"data": b"x"})],
    "dotdot": [("../outside/secret", {"data": b"x"}), ("a/../../outside/new", {"data": b"x"})],
    "link then through it": [("l", link("../outside")), ("l/secret", {"data": b"x"})],
    "absolute link then through it": [("l", link("/")), ("l/tmp/x", {"data": b"x"})],
    "folder link then folder": [("l", link("../outside")), ("l/", FOLDER), ("l/n", {"data": b"x"})],
    "link to file then file": [("l", link("../outside/secret")), ("l", {"data": b"x"})],
    "chain": [
        ("a", link(".")),
        ("a/b", link("..")),
        ("c", link("a/b")),
        ("c/outside/new", {"data": b"x"}),
    ],
    "chain that only escapes later": [
        ("deep/er", FOLDER),
        ("l", link("deep/er")),
        ("m", link("l/../../..")),
        ("m/outside/new", {"data": b"x"}),
    ],
    "hard link outside": [("h", hard("../outside/secret")), ("h2", hard("/etc/passwd"))],
    "hard link through a link": [("l", link("../outside")), ("h", hard("l/secret"))],
    "hard link after swap": [
        ("d/", FOLDER),
        ("d/secret", {"data": b"mine"}),
        ("d", link("../outside")),
        ("h", hard("d/secret")),
        ("h", {"data": b"overwritten"}),
    ],
    "hard link to a link": [("l", link("../outside/secret")), ("h", hard("l"))],
    "nul": [("a\0/../../outside/new", {"data": b"x"})],
}


@pytest.mark.parametrize("members", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("limits", [None, INSIDE], ids=["drop", "inside"])
def test_nothing_gets_out(members: list[Member], limits: TransferLimits | None, dest: Path) -> None:
    extract(make_tar(members), dest, limits)
    assert untouched(dest)
    assert not Path("/tmp/outside-abs").exists()
    for path in dest.rglob("*"):
        if path.is_symlink():
            resolved = (path.parent / os.readlink(path)).resolve()
            assert resolved.is_relative_to(dest.resolve()), path
        elif path.is_file():
            assert path.stat().st_nlink == 1


def test_links_are_dropped_by_default_and_reported(dest: Path) -> None:
    report = extract(make_tar([("f", {"data": b"1"}), ("l", link("f"))]), dest)
    assert names(dest) == {"f"}
    assert report == TransferReport(1, 1, ("l: symbolic link",), 1)


def test_links_inside_are_kept_and_escaping_ones_are_not(dest: Path) -> None:
    members = [
        ("d/f", {"data": b"1"}),
        ("good", link("d/f")),
        ("d/up", link("../d/f")),
        ("dangling", link("not/there")),
        ("loop", link("loop")),
        ("out", link("../outside")),
        ("abs", link("/etc")),
        ("e/a", link("..")),  # the root of the tree: inside
        ("via", link("e/a/../x")),  # lexically `e/x`, really above the root
    ]
    report = extract(make_tar(members), dest, INSIDE)
    kept = {name for name in names(dest) if (dest / name).is_symlink()}
    assert kept == {"good", "d/up", "dangling", "e/a"}
    assert {line.split(":")[0] for line in report.dropped} == {"loop", "out", "abs", "via"}
    assert (dest / "good").read_bytes() == b"1"


def test_existing_links_of_the_host_are_not_written_through(dest: Path) -> None:
    dest.mkdir()
    (dest / "sub").symlink_to("../outside")
    (dest / "f").symlink_to("../outside/secret")
    extract(make_tar([("sub/secret", {"data": b"x"}), ("f", {"data": b"y"})]), dest)
    assert untouched(dest)
    assert (dest / "sub" / "secret").read_bytes() == b"x"
    assert (dest / "f").read_bytes() == b"y"


def test_a_kept_link_cannot_lead_out_through_a_link_of_the_host(dest: Path) -> None:
    dest.mkdir()
    (dest / "host").symlink_to("../outside")
    extract(make_tar([("l", link("host/secret"))]), dest, INSIDE)
    assert names(dest) == {"host"}


def test_a_hard_link_to_what_was_there_before_is_refused(dest: Path) -> None:
    dest.mkdir()
    (dest / "private").write_text("host's own")
    report = extract(make_tar([("h", hard("private"))]), dest)
    assert names(dest) == {"private"}
    assert "not from the archive" in report.dropped[0]


def test_hard_links_become_copies_that_count(dest: Path) -> None:
    members = [("f", {"data": b"x" * 600}), ("g", hard("f"))]
    report = extract(make_tar(members), dest)
    assert (report.files, report.bytes) == (2, 1200)
    assert (dest / "f").stat().st_ino != (dest / "g").stat().st_ino
    with pytest.raises(TransferLimitError):
        extract(make_tar(members), dest.parent / "dest2", TransferLimits(max_bytes=1000))


def test_special_files_are_dropped_and_reported(dest: Path) -> None:
    kinds = {"chr": tarfile.CHRTYPE, "blk": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "odd": b"Z"}
    members: list[Member] = [(name, {"type": kind}) for name, kind in kinds.items()]
    report = extract(make_tar([*members, ("f", {"data": b"1"})]), dest)
    assert names(dest) == {"f"}
    assert report.dropped_count == 4


def test_modes_and_times_are_tamed(dest: Path) -> None:
    members = [
        ("suid", {"data": b"1", "mode": 0o6755, "mtime": 1_000_000}),
        ("none", {"data": b"1", "mode": 0, "mtime": 2**40}),
        ("dir", {"type": tarfile.DIRTYPE, "mode": 0}),
        ("dir/f", {"data": b"1"}),
        ("sticky", {"type": tarfile.DIRTYPE, "mode": 0o7777}),
    ]
    extract(make_tar(members), dest)
    mode = {name: stat.S_IMODE((dest / name).stat().st_mode) for name in names(dest)}
    assert mode["suid"] == 0o755
    assert mode["none"] == 0o600
    assert mode["dir"] == 0o700
    assert mode["sticky"] == 0o777
    assert (dest / "suid").stat().st_mtime == 1_000_000
    assert (dest / "none").stat().st_mtime < 2**33


def test_duplicates_replace_each_other_safely(dest: Path) -> None:
    members = [
        ("x", {"data": b"1"}),
        ("x", {"data": b"22"}),
        ("y", link("x")),
        ("y/in", {"data": b"3"}),  # y becomes a directory
        ("z", FOLDER),
        ("z", {"data": b"4"}),  # an empty directory gives way
        ("w/in", {"data": b"5"}),
        ("w", {"data": b"6"}),  # a full one does not
        ("v", {"data": b"7"}),
        ("v", link("x")),
    ]
    report = extract(make_tar(members), dest, INSIDE)
    assert names(dest) == {"x", "y", "y/in", "z", "w", "w/in", "v"}
    assert (dest / "x").read_bytes() == b"22"
    assert (dest / "z").read_bytes() == b"4"
    assert (dest / "w/in").read_bytes() == b"5"
    assert (dest / "v").is_symlink()
    assert any(line.startswith("w:") for line in report.dropped)


def test_a_header_that_claims_8_gib_is_refused_at_once(dest: Path) -> None:
    info = tarfile.TarInfo("huge")
    info.size = 8 << 30
    with pytest.raises(TransferLimitError, match="8589934592"):
        extract(info.tobuf(), dest)


@pytest.mark.parametrize("fmt", ["gnu", "pax"])
def test_sparse_files_are_refused(fmt: str, dest: Path) -> None:
    if fmt == "gnu":
        info = tarfile.TarInfo("sparse")
        info.type = b"S"
        data = info.tobuf() + bytes(1024)
    else:
        data = make_tar([("s", {"pax_headers": {"GNU.sparse.realsize": "8589934592"}})])
    with pytest.raises(TransferLimitError, match="sparse"):
        extract(data, dest)


def test_skipped_data_counts_as_well(dest: Path) -> None:
    data = make_tar([("../out", {"data": bytes(2000)})])
    with pytest.raises(TransferLimitError):
        extract(data, dest, TransferLimits(max_bytes=1000))


def one_header(name: bytes, kind: bytes = b"0") -> bytes:
    return packer.header(name, 0o644, 0, 0, 0, 0, kind)


@pytest.mark.parametrize("kind", [b"0", b"6", b"2"], ids=["files", "fifos", "links"])
def test_a_million_tiny_entries_end_within_seconds(kind: bytes, dest: Path) -> None:
    start = time.process_time()
    limits = TransferLimits(max_entries=5_000, links="inside")

    def flood() -> None:
        with Extractor(dest, limits) as out:
            for number in range(1_000_000):
                out.feed(packer.header(b"f%d" % number, 0o644, 0, 0, 0, 0, kind, b"t"))

    with pytest.raises(TransferLimitError, match="5000 entries"):
        flood()
    assert time.process_time() - start < 5


def test_parents_without_entries_count_too(dest: Path) -> None:
    data = b"".join(one_header(b"%d/b/c/d/e/f" % number) for number in range(100))
    with pytest.raises(TransferLimitError, match="500 entries"):
        extract(data + packer.END, dest, TransferLimits(max_entries=500))


def test_too_deep_is_refused_and_endless_paths_are_left_out(dest: Path) -> None:
    with pytest.raises(TransferLimitError, match="deeper than 64"):
        extract(make_tar([("/".join("a" * 65), {"data": b"x"})]), dest)
    long = "/".join(["x" * 250] * 20)
    report = extract(make_tar([(long, {"data": b"x"}), ("y" * 300, {"data": b"x"})]), dest)
    assert report.files == 0
    assert report.dropped_count == 2
    assert all(len(line) < 300 for line in report.dropped)


def test_a_chain_of_links_longer_than_path_max_is_harmless(dest: Path) -> None:
    parts = [f"{index:03d}" + "d" * 200 for index in range(30)]
    members: list[Member] = [("s" + str(i), link("s" + str(i + 1))) for i in range(200)]
    members += [("/".join(parts[: i + 1]), link("/".join([".."] * (i + 1)))) for i in range(12)]
    extract(make_tar(members), dest, INSIDE)
    assert untouched(dest)


def test_tangled_links_cost_a_bounded_amount(dest: Path) -> None:
    # Each link passes through the one before it many times: the work would grow exponentially.
    members: list[Member] = [("l0", link("."))]
    members += [(f"l{i}", link("/".join([f"l{i - 1}"] * 200))) for i in range(1, 60)]
    start = time.process_time()
    extract(make_tar(members), dest, INSIDE)
    assert time.process_time() - start < 10
    assert untouched(dest)


def test_names_in_the_report_are_safe_to_show(dest: Path) -> None:
    report = extract(make_tar([("\x1b]0;x\x07\u202e", {"type": tarfile.FIFOTYPE})]), dest)
    assert report.dropped[0].isprintable()


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 4096])
@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_every_format_in_any_pieces(step: int, fmt: int, dest: Path) -> None:
    long = "d" * 90 + "/" + "f" * 90
    other = "unicode-é-" + "n" * (80 if fmt == tarfile.USTAR_FORMAT else 200)
    members = [(long, {"data": b"a" * 1000}), (other, {"data": b"b" * 512}), ("e", {"data": b""})]
    report = extract(make_tar(members, fmt), dest, step=step)
    assert report == TransferReport(3, 1512)
    assert (dest / long).read_bytes() == b"a" * 1000
    assert (dest / other).read_bytes() == b"b" * 512


def test_a_pax_header_of_exactly_one_block(dest: Path) -> None:
    for size in range(460, 520):
        info = tarfile.TarInfo("f")
        info.pax_headers = {"comment": "c" * size}
        extract(info.tobuf(tarfile.PAX_FORMAT) + packer.END, dest)
    assert names(dest) == {"f"}


def test_global_headers_neither_cost_memory_nor_rename(dest: Path) -> None:
    def header(kind: bytes, key: bytes, value: bytes) -> bytes:
        body = b"%s=%s\n" % (key, value)
        size = len(body) + 7
        records = b"%06d %s" % (size, body)
        head = packer.header(b"g", 0o644, 0, 0, len(records), 0, kind)
        return head + records + bytes(-len(records) % 512)

    data = bytearray()
    for number in range(300):
        data += header(b"g", b"k%d" % number, b"v" * 100_000) + one_header(b"f%d" % number)
    data += header(b"g", b"path", b"../../x") + header(b"g", b"mtime", b"1000.5") + one_header(b"g")
    stream = bytes(data + packer.END)
    tracemalloc.start()
    report = extract(stream, dest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.files == 301
    assert (dest / "g").stat().st_mtime == 1000
    assert peak < 5_000_000
    with pytest.raises(TransferLimitError, match="sparse"):
        extract(header(b"g", b"GNU.sparse.major", b"1") + one_header(b"f"), dest)


def test_strip_takes_off_leading_components(dest: Path) -> None:
    report = extract(make_tar([("top/", FOLDER), ("top/a", {"data": b"1"})]), dest, strip=1)
    assert names(dest) == {"a"}
    assert report.files == 1
    extract(make_tar([("one", {"data": b"22"})]), dest.parent / "file", strip=1)
    assert (dest.parent / "file").read_bytes() == b"22"


def test_truncated_and_malformed_archives_are_refused(dest: Path) -> None:
    whole = make_tar([("f", {"data": b"x" * 2000})])
    for cut in (0, 100, 512, 1500, 2560):
        with pytest.raises(SandboxError, match="ended early"):
            extract(whole[:cut], dest)
    with pytest.raises(TransferLimitError, match="checksum"):
        extract(b"\x01" + whole[1:], dest)
    with pytest.raises(TransferLimitError, match="extended headers"):
        extract(packer.header(b"x", 0, 0, 0, 1 << 40, 0, b"x"), dest)
    with pytest.raises(TransferLimitError, match="extended headers"):
        extract(packer.header(b"x", 0, 0, 0, 0, 0, b"g") * 100, dest)


def test_a_file_is_not_put_in_the_place_of_a_directory(dest: Path) -> None:
    dest.mkdir()
    with pytest.raises(IsADirectoryError):
        extract(make_tar([(".", {"data": b"1"})]), dest)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_bytes_never_crash_or_escape(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    base = make_tar(
        [
            ("a" * 120, {"data": b"x" * 100}),
            ("d", FOLDER),
            ("l", link("d")),
            ("h", hard("d/x")),
            ("k", {"pax_headers": {"mtime": "1.5", "path": "q/r"}}),
        ]
    )
    raw = bytearray(base)
    for _ in range(data.draw(st.integers(0, 12))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # make headers valid again, so that the changes are reached
        for at in range(0, len(raw), 512):
            block = raw[at : at + 512]
            block[148:156] = b" " * 8
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    else:
        raw += data.draw(st.binary(max_size=600))
    home = tmp_path_factory.mktemp("fuzz")
    (home / "outside").mkdir()
    with suppress(RamifyError):  # a clear refusal is one of the two good answers
        extract(bytes(raw), home / "dest", INSIDE, step=data.draw(st.integers(1, 3000)))
    assert set(os.listdir(home)) <= {"dest", "outside"}
    assert os.listdir(home / "outside") == []


# Round trips

NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
TREES = st.recursive(
    st.binary(max_size=1500), lambda inner: st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def write_tree(path: Path, tree: bytes | dict[str, object]) -> None:
    if isinstance(tree, bytes):
        path.write_bytes(tree)
        path.chmod(0o640 if len(tree) % 2 else 0o755)
        return
    path.mkdir()
    for name, inner in tree.items():
        write_tree(path / name, inner)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, TREES, max_size=4))
def test_trees_survive_both_ways(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    home = tmp_path_factory.mktemp("trees")
    write_tree(home / "src", tree)
    (home / "src" / "link").symlink_to("somewhere/" + "x" * 150)
    status, reason, stream = pack_inside(home / "src")
    assert (status, reason) == (descent.OK, "")
    extract(stream, home / "down", INSIDE)
    assert digest_tree(home / "down") == digest_tree(home / "src")
    upload = b"".join(pack_tree(home / "src"))
    assert unpack_inside(upload, home / "up" / "made") == (descent.OK, "")
    assert digest_tree(home / "up" / "made") == digest_tree(home / "src")
    with tarfile.open(fileobj=io.BytesIO(upload)) as tar:  # others can read it too
        assert len(tar.getnames()) == 1 + len(names(home / "src"))


def test_single_files_go_both_ways(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content" * 1000)
    (tmp_path / "f").chmod(0o751)
    status, _, stream = pack_inside(tmp_path / "f")
    assert status == descent.OK
    extract(stream, tmp_path / "new" / "g")
    assert (tmp_path / "new" / "g").read_bytes() == b"content" * 1000
    upload = b"".join(pack_tree(tmp_path / "f", mode=0o600))
    assert unpack_inside(upload, tmp_path / "x" / "y")[0] == descent.OK
    assert (tmp_path / "x" / "y").stat().st_mode & 0o7777 == 0o600


def test_digest_tells_trees_apart(tmp_path: Path) -> None:
    def digest(change: Callable[[Path], object]) -> str:
        root = tmp_path / os.urandom(4).hex()
        (root / "d").mkdir(parents=True)
        (root / "d" / "f").write_bytes(b"1")
        (root / "l").symlink_to("d")
        change(root)
        return digest_tree(root)

    plain = digest(lambda root: None)
    assert digest(lambda root: os.utime(root / "d" / "f", (5, 5))) == plain
    changes: list[Callable[[Path], object]] = [
        lambda root: (root / "d" / "f").write_bytes(b"2"),
        lambda root: (root / "d" / "f").rename(root / "d" / "g"),
        lambda root: (root / "d" / "f").chmod(0o600),
        lambda root: (root / "d" / "new").mkdir(),
        lambda root: os.mkfifo(root / "fifo"),
        lambda root: ((root / "l").unlink(), (root / "l").symlink_to("e")),
    ]
    assert len({plain, *(digest(change) for change in changes)}) == len(changes) + 1


# Packing inside: the tree is hostile


def test_special_files_neither_block_nor_vanish_silently(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "f").write_text("1")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(source / "sock"))
        status, _, stream = pack_inside(source)
    assert status == descent.OK
    report = extract(stream, tmp_path / "dest")
    assert names(tmp_path / "dest") == {"f"}
    assert {line.split(":")[0] for line in report.dropped} == {"fifo", "sock"}


def test_paths_that_cannot_be_downloaded(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("1")
    (tmp_path / "to_d").symlink_to("d")
    (tmp_path / "to_f").symlink_to("d/f")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        "nothing": descent.NOT_FOUND,
        "d/f/below": descent.NOT_FOUND,
        "to_d/f": descent.NOT_FOUND,
        "d/../d/f": descent.NOT_FOUND,
        "to_d": descent.WRONG_TYPE,
        "to_f": descent.WRONG_TYPE,
        "fifo": descent.WRONG_TYPE,
    }
    for name, status in expected.items():
        assert pack_inside(f"{tmp_path}/{name}")[0] == status, name
    assert pack_inside("/proc/self/environ")[0] == descent.WRONG_TYPE
    assert pack_inside("/proc/self")[0] == descent.WRONG_TYPE


@pytest.mark.parametrize(
    "limits",
    [
        packer.Limits(5, 1 << 30, 1 << 30, 64),
        packer.Limits(1000, 5000, 1 << 30, 64),
        packer.Limits(1000, 1 << 30, 500, 64),
        packer.Limits(1000, 1 << 30, 1 << 30, 2),
    ],
    ids=["entries", "bytes", "file", "depth"],
)
def test_the_packer_stops_at_limits(limits: packer.Limits, tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"d{number}" / "x" / "y").mkdir(parents=True)
        (tmp_path / f"d{number}" / "f").write_bytes(bytes(1000))
    status, reason, stream = pack_inside(tmp_path, limits)
    assert status == descent.TOO_MUCH
    assert reason
    assert not stream.endswith(packer.END)


def test_a_sparse_file_costs_nothing_to_refuse(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(8 << 40)
    start = time.process_time()
    assert pack_inside(tmp_path)[0] == descent.TOO_MUCH
    assert time.process_time() - start < 1


def test_a_tree_that_changes_under_the_packer_gives_a_valid_archive(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("precious")
    stop = threading.Event()

    def churn() -> None:
        rng = random.Random(7)
        while not stop.is_set():
            name = source / f"n{rng.randrange(8)}"
            try:
                kind = rng.randrange(4)
                if name.is_symlink() or name.is_file():
                    name.unlink()
                elif name.exists():
                    (name / "key").unlink(missing_ok=True)
                    name.rmdir()
                elif kind == 0:
                    name.symlink_to("../secret")
                elif kind == 1:
                    name.write_bytes(bytes(rng.randrange(5000)))
                elif kind == 2:
                    name.mkdir()
                    (name / "key").write_text("mine")
                else:
                    name.symlink_to("../secret/key")
            except OSError:
                continue  # lost a race with itself; the next round does something else

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for turn in range(150):
            status, reason, stream = pack_inside(source)
            assert status == descent.OK, reason
            dest = tmp_path / f"dest{turn}"
            extract(stream, dest)
            for path in dest.rglob("key"):
                assert path.read_text() in ("mine", "")
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("module", [descent, packer, unpacker])
def test_what_runs_inside_speaks_python_38(module: ModuleType) -> None:
    source = Path(str(module.__file__)).read_text()
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source


def test_packer_and_extractor_agree_on_depth(tmp_path: Path) -> None:
    (tmp_path / "src" / "a" / "b").mkdir(parents=True)
    limits = packer.Limits(100, 1000, 1000, 2)
    status, _, stream = pack_inside(tmp_path / "src", limits)
    assert status == descent.OK
    extract(stream, tmp_path / "dest", TransferLimits(max_depth=2))
    (tmp_path / "src" / "a" / "b" / "c").mkdir()
    assert pack_inside(tmp_path / "src", limits)[0] == descent.TOO_MUCH


# Unpacking inside


def test_an_upload_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("new")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "f").symlink_to("../victim")
    status = unpack_inside(b"".join(pack_tree(tmp_path / "src")), tmp_path / "app")
    assert status == (descent.OK, "")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "app" / "f").read_text() == "new"
    assert not (tmp_path / "app" / "f").is_symlink()


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of two users: run as root")
def test_links_at_a_directorys_place_are_followed_only_if_root_made_them(tmp_path: Path) -> None:
    for name in ("src/lib", "src/bin", "real", "root/etc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src" / "lib" / "f").write_text("1")
    (tmp_path / "src" / "bin" / "g").write_text("2")
    (tmp_path / "root" / "lib").symlink_to("../real")  # as /lib of a merged /usr
    (tmp_path / "root" / "bin").symlink_to("../real")
    os.lchown(tmp_path / "root" / "bin", 1000, 1000)  # as an agent would plant it
    stream = b"".join(pack_tree(tmp_path / "src"))
    assert unpack_inside(stream, tmp_path / "root") == (descent.OK, "")
    assert sorted(os.listdir(tmp_path / "real")) == ["f"]
    assert (tmp_path / "root" / "lib").is_symlink()
    assert (tmp_path / "root" / "bin").is_dir()
    assert not (tmp_path / "root" / "bin").is_symlink()
    os.lchown(tmp_path / "root" / "lib", 1000, 1000)
    status, reason = unpack_inside(stream, tmp_path / "root" / "lib" / "below")
    assert status == descent.FAILED
    assert "symbolic link" in reason


def test_uploads_never_reach_kernel_file_systems(tmp_path: Path) -> None:
    (tmp_path / "core_pattern").write_text("|/evil")
    stream = b"".join(pack_tree(tmp_path / "core_pattern"))
    (tmp_path / "app").symlink_to("/proc/self")
    (tmp_path / "up").symlink_to("../" * 30 + "proc/sys")
    for path in (tmp_path / "app" / "x", tmp_path / "up" / "x", Path("/proc/self/x")):
        status, reason = unpack_inside(stream, path)
        assert status == descent.FAILED
        assert "kernel file system" in reason or os.getuid() != 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs links made by root: run as root")
def test_links_of_root_are_followed_by_hand(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("1")
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "rel").symlink_to("real/sub/../sub")
    (tmp_path / "abs").symlink_to(tmp_path / "rel")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("made/later")
    stream = b"".join(pack_tree(tmp_path / "f"))
    assert unpack_inside(stream, tmp_path / "abs" / "x" / "y") == (descent.OK, "")
    assert (tmp_path / "real" / "sub" / "x" / "y").read_text() == "1"
    assert unpack_inside(stream, tmp_path / "dangling" / "z") == (descent.OK, "")
    assert (tmp_path / "made" / "later" / "z").read_text() == "1"
    assert unpack_inside(stream, tmp_path / "loop" / "x")[0] == descent.FAILED


def test_clear_removes_the_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("new")
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "old").write_text("1")
    (tmp_path / "tests").symlink_to("keep")
    stream = b"".join(pack_tree(tmp_path / "src"))
    assert unpack_inside(stream, tmp_path / "tests", clear=True) == (descent.OK, "")
    assert names(tmp_path / "keep") == {"old"}
    assert names(tmp_path / "tests") == {"f"}
    (tmp_path / "tests" / "planted").mkdir()
    assert unpack_inside(stream, tmp_path / "tests", clear=True) == (descent.OK, "")
    assert names(tmp_path / "tests") == {"f"}
    assert unpack_inside(stream, tmp_path / "fresh" / "x", clear=True) == (descent.OK, "")


def test_uploads_merge_directories_and_say_why_they_fail(tmp_path: Path) -> None:
    (tmp_path / "src" / "d").mkdir(parents=True)
    (tmp_path / "src" / "d" / "f").write_text("new")
    (tmp_path / "app" / "d").mkdir(parents=True)
    (tmp_path / "app" / "d").chmod(0o1777)
    (tmp_path / "app" / "d" / "old").write_text("old")
    stream = b"".join(pack_tree(tmp_path / "src"))
    assert unpack_inside(stream, tmp_path / "app") == (descent.OK, "")
    assert names(tmp_path / "app") == {"d", "d/f", "d/old"}
    assert stat.S_IMODE((tmp_path / "app" / "d").stat().st_mode) == 0o1777
    (tmp_path / "file").write_text("1")
    status, reason = unpack_inside(stream, tmp_path / "file" / "below")
    assert status == descent.FAILED
    assert "file" in reason
    status, reason = unpack_inside(b"".join(pack_tree(tmp_path / "file")), tmp_path / "app" / "d")
    assert status == descent.FAILED
    assert "directory" in reason
    assert unpack_inside(stream[:600], tmp_path / "cut")[1] == "the upload ended early"


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("deep", dir_fd=fd)
    at = os.open("deep", os.O_RDONLY, dir_fd=fd)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    descent.remove(fd, b"deep")
    descent.remove(fd, b"deep")
    os.close(fd)
    assert os.listdir(tmp_path) == []
