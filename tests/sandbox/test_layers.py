import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.contracts.errors import ConfigError, StoreError, UnsupportedError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.digests import digest_tree
from ramify.planes.sandbox.layers import LayerStore

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: owners and overlay mounts")
Files = dict[str, bytes]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path / "store")
    yield store
    store.close()


def tar_of(files: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, value in files.items():
            if isinstance(value, tarfile.TarInfo):
                tar.addfile(value)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    return buffer.getvalue()


def special(name: str, kind: bytes, **attributes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def base(tmp_path: Path, store: LayerStore, name: str = "base") -> SandboxImage:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True, exist_ok=True)
    (tree / "etc" / "conf").write_text("base")
    (tree / "etc" / "gone").write_text("base")
    (tree / "data" / "deep").mkdir(parents=True, exist_ok=True)
    (tree / "data" / "deep" / "f").write_text("base")
    return store.import_tree(tree, name=name)


def diffs(store: LayerStore, image: SandboxImage) -> list[Path]:
    return [store.layers_dir / lower for lower in store.lowers(image)]


def grow(store: LayerStore, image: SandboxImage | None, files: Files) -> SandboxImage:
    """An image frozen from `image` with some files written."""
    scratch = store.new_scratch(image)
    for name, data in files.items():
        path = scratch.upper / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return store.freeze(scratch)


def layer_count(store: LayerStore) -> int:
    return len(os.listdir(store.layers_dir))


# Importing


def test_a_tree_is_imported_once(tmp_path: Path, store: LayerStore) -> None:
    image = base(tmp_path, store)
    assert image.pristine
    assert image.parent is None
    assert image.size_bytes == 12
    assert store.resolve("base") == image
    assert base(tmp_path, store, "other:1.0") == image
    assert layer_count(store) == 1
    (diff,) = diffs(store, image)
    assert digest_tree(diff) == digest_tree(tmp_path / "tree")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_root_file_system_is_imported_from_tar(
    tmp_path: Path, store: LayerStore, pack: type[bytes]
) -> None:
    data = tar_of(
        {
            "./": special("./", tarfile.DIRTYPE, mode=0o711),
            "./bin": special("./bin", tarfile.SYMTYPE, linkname="usr/bin"),
            "./usr/bin/su": special("./usr/bin/su", tarfile.REGTYPE, mode=0o4755),
            "./hard": special("./hard", tarfile.LNKTYPE, linkname="./usr/bin/su"),
            "./dev/null": special("./dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
            "./abs": special("./abs", tarfile.SYMTYPE, linkname="/etc/passwd"),
            "./locked": special("./locked", tarfile.DIRTYPE, mode=0o555, mtime=1000),
            "./locked/f": b"x",
        }
    )
    (tmp_path / "root.tar").write_bytes(pack(data))
    image = store.import_tar(tmp_path / "root.tar", name="debian:bookworm")
    (diff,) = diffs(store, image)
    assert stat.S_IMODE(diff.stat().st_mode) == 0o711
    assert os.readlink(diff / "abs") == "/etc/passwd"
    assert stat.S_IMODE((diff / "usr/bin/su").stat().st_mode) == 0o4755
    assert (diff / "hard").stat().st_ino == (diff / "usr/bin/su").stat().st_ino
    assert (diff / "locked").stat().st_mtime == 1000
    assert not (diff / "dev" / "null").exists()
    resolved = store.resolve("docker.io/library/debian:bookworm")
    assert resolved == image
    assert store.resolve("debian") is None


@needs_root
def test_owners_and_capabilities_are_kept(tmp_path: Path, store: LayerStore) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    entry = special("ping", tarfile.REGTYPE, uid=33, gid=44)
    entry.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("latin-1")}
    files = {"ping": entry, "d": special("d", tarfile.DIRTYPE, uid=5, gid=6)}
    (tmp_path / "root.tar").write_bytes(tar_of(files))
    (diff,) = diffs(store, store.import_tar(tmp_path / "root.tar"))
    assert ((diff / "ping").stat().st_uid, (diff / "ping").stat().st_gid) == (33, 44)
    assert ((diff / "d").stat().st_uid, (diff / "d").stat().st_gid) == (5, 6)
    assert os.getxattr(diff / "ping", "security.capability") == capability


LOWER = tar_of({"etc/conf": b"1", "etc/gone": b"1", "dir/a": b"1", "dir/b": b"1"})
UPPER = tar_of({"etc/.wh.gone": b"", "dir/.wh..wh..opq": b"", "dir/c": b"2", "etc/conf": b"2"})
CONFIG = {
    "config": {
        "Env": ["PATH=/bin", "A=b=c"],
        "User": "app",
        "WorkingDir": "/app",
        "Entrypoint": ["/entry"],
        "Cmd": None,
    }
}


def docker_save(path: Path) -> None:
    manifest = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l1/layer.tar", "l2.tar"]}]
    path.write_bytes(
        tar_of(
            {
                "l1/layer.tar": LOWER,
                "l2.tar": UPPER,
                "c.json": json.dumps(CONFIG).encode(),
                "manifest.json": json.dumps(manifest).encode(),
            }
        )
    )


def oci_layout(path: Path) -> None:
    blobs: dict[str, bytes | tarfile.TarInfo] = {}

    def put(data: bytes, **extra: object) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{name}"] = data
        return {"digest": f"sha256:{name}", "size": len(data), **extra}

    layers = [put(gzip.compress(LOWER, mtime=0)), put(gzip.compress(UPPER, mtime=0))]
    manifest = {"config": put(json.dumps(CONFIG).encode()), "layers": layers}
    media = "application/vnd.oci.image.manifest.v1+json"
    inner = {
        "manifests": [
            put(
                json.dumps(manifest).encode(),
                mediaType=media,
                platform={"os": "linux", "architecture": machine},
            )
            for machine in ("amd64", "arm64")
        ]
    }
    index = put(
        json.dumps(inner).encode(),
        mediaType="application/vnd.oci.image.index.v1+json",
        annotations={"io.containerd.image.name": "docker.io/library/app:1"},
    )
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    blobs["index.json"] = json.dumps({"manifests": [index]}).encode()
    path.write_bytes(tar_of(blobs))


@pytest.mark.parametrize("make", [docker_save, oci_layout])
def test_images_keep_layers_whiteouts_and_config(
    make: object, tmp_path: Path, store: LayerStore
) -> None:
    make(tmp_path / "image.tar")  # type: ignore[operator]
    image = store.import_tar(tmp_path / "image.tar", name="mine")
    assert store.resolve("app:1") == store.resolve("mine") == image
    assert image.env == {"PATH": "/bin", "A": "b=c"}
    assert (image.user, image.workdir) == ("app", "/app")
    upper, lower = diffs(store, image)
    assert (lower / "dir" / "a").read_bytes() == b"1"
    gone = (upper / "etc" / "gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    mark = "trusted.overlay.opaque" if os.getuid() == 0 else "user.overlay.opaque"
    assert os.getxattr(upper / "dir", mark) == b"y"
    assert os.listdir(upper / "dir") == ["c"]
    assert "entry" in (store.root / "images" / f"{image.id}.json").read_text()


def test_hostile_image_layers_stay_in_their_directory(tmp_path: Path, store: LayerStore) -> None:
    (tmp_path / "secret").write_text("precious")
    for files in (
        {"../../x": b"1"},
        {"l": special("l", tarfile.SYMTYPE, linkname="/"), "l/tmp/x": b"1"},
        {"h": special("h", tarfile.LNKTYPE, linkname=str(tmp_path / "secret"))},
        {"h": special("h", tarfile.LNKTYPE, linkname="../../../../secret")},
    ):
        (tmp_path / "evil.tar").write_bytes(tar_of(files))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="bad image layer"):
            store.import_tar(tmp_path / "evil.tar")
    assert (tmp_path / "secret").stat().st_nlink == 1
    assert layer_count(store) == 0


def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path, store: LayerStore) -> None:
    file = tmp_path / "x.tar"
    cases: list[tuple[bytes, type[Exception], str]] = [
        (b"no tar at all" * 100, ConfigError, "not a tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), UnsupportedError, "zstd"),
        (gzip.compress(LOWER)[:100], ConfigError, "not a tar|ended early"),
        (LOWER[:1500], ConfigError, "ended early|not a tar"),
        (tar_of({"manifest.json": b"[]"}), ConfigError, "0 images"),
        (tar_of({"manifest.json": b"{"}), ConfigError, "manifest.json"),
    ]
    for data, error, message in cases:
        file.write_bytes(data)
        with pytest.raises(error, match=message):
            store.import_tar(file)
    with pytest.raises(ConfigError, match="image name"):
        store.resolve("Not A Name")
    assert layer_count(store) == 0
    assert os.listdir(store.root / "images") == []


# Freezing and discarding


def test_freeze_makes_a_layer_on_top_of_its_parent(tmp_path: Path, store: LayerStore) -> None:
    parent = base(tmp_path, store)
    scratch = store.new_scratch(parent)
    (scratch.upper / "new").write_bytes(b"hello")
    inode = (scratch.upper / "new").stat().st_ino
    child = store.freeze(scratch)
    assert not scratch.path.exists()
    assert not child.pristine
    assert (child.parent, child.size_bytes) == (parent.id, 5)
    top, below = diffs(store, child)
    assert (top / "new").stat().st_ino == inode  # renamed, not copied
    assert [below] == diffs(store, parent)


def test_what_cannot_be_counted_is_frozen_all_the_same(tmp_path: Path, store: LayerStore) -> None:
    parent = base(tmp_path, store)
    assert grow(store, parent, {f"f{n}": b"12345" for n in range(200)}).size_bytes == 1000
    assert grow(store, parent, {f"f{n}": b"12345" for n in range(300)}).size_bytes == -1
    scratch = store.new_scratch(parent)
    at = os.getcwd()
    os.chdir(scratch.upper)  # by path it could not even be made
    try:
        for _ in range(100):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(at)
    image = store.freeze(scratch)
    assert image.size_bytes == -1
    assert len(store.content_digest(image)) == 64
    store.discard(image)


def test_digests_name_states_and_content_digests_what_is_in_them(
    tmp_path: Path, store: LayerStore
) -> None:
    parent = base(tmp_path, store)
    one = grow(store, parent, {"f": b"1"})
    same = grow(store, parent, {"f": b"1"})
    assert len({parent.digest, one.digest, same.digest}) == 3  # nobody looked yet
    assert store.content_digest(one) == store.content_digest(same)
    others = [
        grow(store, parent, {"f": b"2"}),
        grow(store, parent, {"g": b"1"}),
        grow(store, one, {"f2": b"1"}),
        grow(store, None, {"f": b"1"}),
    ]
    found = {store.content_digest(image) for image in (parent, one, *others)}
    assert len(found) == 6
    again = grow(store, grow(store, parent, {"f": b"0", "x": b"0"}), {"f": b"1", "x": b"1"})
    assert store.content_digest(again) == store.content_digest(
        grow(store, parent, {"x": b"1", "f": b"1"})
    )


def test_children_keep_their_parents_layers(tmp_path: Path, store: LayerStore) -> None:
    parent = base(tmp_path, store)
    one = grow(store, parent, {"a": b"1"})
    two = grow(store, one, {"b": b"2"})
    three = grow(store, one, {"c": b"3"})
    store.discard(one)
    store.discard(one)
    assert [path.exists() for path in diffs(store, two)] == [True] * 3
    with pytest.raises(StoreError, match="gone"):
        store.new_scratch(one)
    store.discard(two)
    assert layer_count(store) == 3
    store.discard(three)
    assert layer_count(store) == 1
    store.discard(parent)  # pristine images stay
    assert store.resolve("base") == parent
    assert layer_count(store) == 1


def test_a_scratch_keeps_what_it_runs_on(tmp_path: Path, store: LayerStore) -> None:
    image = grow(store, base(tmp_path, store), {"a": b"1"})
    scratch = store.new_scratch(image)
    paths = diffs(store, image)
    store.discard(image)
    assert all(path.exists() for path in paths)
    store.drop(scratch)
    store.drop(scratch)
    assert not paths[0].exists()
    assert paths[1].exists()


def test_images_on_a_root_outside_the_store(store: LayerStore) -> None:
    host = SandboxImage(id="host", provider="local", digest="d", env={"A": "1"}, user="u")
    assert store.lowers(host) == ()
    one = grow(store, host, {"a": b"1"})
    two = grow(store, one, {"b": b"2"})
    assert store.base(host) == store.base(two) == "host"
    assert (two.env, two.user) == ({"A": "1"}, "u")
    assert len(store.lowers(two)) == 2
    assert one.digest != grow(store, None, {"a": b"1"}).digest
    assert store.base(grow(store, None, {})) is None


# Engines that die


def test_sweep_leaves_live_engines_alone(tmp_path: Path, store: LayerStore) -> None:
    image = grow(store, base(tmp_path, store), {"a": b"1"})
    scratch = store.new_scratch(image)
    other = LayerStore(store.root)
    assert other.sweep() == 0
    assert scratch.upper.exists()
    other.close()
    assert scratch.upper.exists()
    assert all(path.exists() for path in diffs(store, image))


DYING = """
import os, sys
from pathlib import Path
from ramify.planes.sandbox.layers import LayerStore
store = LayerStore(Path(sys.argv[1]))
base = store.resolve("base")
def grow(image):
    scratch = store.new_scratch(image)
    (scratch.upper / "f").write_text("x")
    return store.freeze(scratch)
kept = grow(grow(base))
store.tag("kept:1", kept.id)
grow(kept)
scratch = store.new_scratch(base)
(scratch.work / "work").mkdir()
(scratch.work / "work").chmod(0)
os.kill(os.getpid(), 9)
"""


def test_sweep_removes_what_a_killed_engine_left(tmp_path: Path, store: LayerStore) -> None:
    base(tmp_path, store)
    subprocess.run([sys.executable, "-c", DYING, str(store.root)], check=False, timeout=60)
    assert layer_count(store) == 4
    assert len(os.listdir(store.root / "engines")) == 2
    removed = store.sweep()
    assert removed >= 3  # a scratch and two images, with one layer
    assert len(os.listdir(store.root / "engines")) == 1
    kept = store.resolve("kept:1")
    assert kept is not None
    assert len(diffs(store, kept)) == 3
    assert layer_count(store) == 3
    assert store.sweep() == 0


def test_broken_pieces_are_removed_and_whole_ones_stay(tmp_path: Path, store: LayerStore) -> None:
    parent = base(tmp_path, store)
    lost, spoilt, torn = (grow(store, parent, {"f": b"%d" % n}) for n in range(3))
    shutil.rmtree(diffs(store, lost)[0].parent)
    record = store.root / "images" / f"{spoilt.id}.json"
    data = json.loads(record.read_text())
    record.write_text(json.dumps(data | {"boot": "another boot"}))
    (store.root / "images" / f"{torn.id}.json").write_text('{"id": "to')
    (store.root / "images" / ".half.json.tmp").write_text("{")
    (store.layers_dir / "orphan" / "refs").mkdir(parents=True)
    (store.layers_dir / "orphan" / "refs" / "i-nothing").touch()
    store.sweep()
    assert os.listdir(store.root / "images") == [f"{parent.id}.json"]
    assert [store.layers_dir / name / "diff" for name in os.listdir(store.layers_dir)] == diffs(
        store, parent
    )


def test_threads_and_engines_share_a_store(tmp_path: Path, store: LayerStore) -> None:
    parent = base(tmp_path, store)
    errors: list[Exception] = []

    def work(own: LayerStore, number: int) -> None:
        try:
            for turn in range(8):
                image = grow(own, parent, {f"{number}-{turn}": b"x"})
                child = grow(own, image, {"y": b"y"})
                own.discard(image)
                if turn % 3 == 0:
                    own.sweep()
                own.discard(child)
        except Exception as error:
            errors.append(error)

    second = LayerStore(store.root)
    threads = [
        threading.Thread(target=work, args=(own, n)) for n, own in enumerate([store, second] * 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert errors == []
    assert layer_count(store) == 1


def test_a_directory_that_cannot_hold_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        LayerStore(tmp_path / "file" / "store")


def test_tags_move_and_need_an_image(tmp_path: Path, store: LayerStore) -> None:
    image = base(tmp_path, store)
    other = grow(store, image, {"a": b"1"})
    store.tag("x:y", image.id)
    store.tag("x:y", other.id)
    assert store.resolve("x:y") == other
    with pytest.raises(StoreError, match="no image"):
        store.tag("x:y", "nothing")
    assert store.resolve("localhost:5000/x:y") is None
