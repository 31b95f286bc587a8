"""Image archives that come in pieces: what ends up in the store, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import Healthcheck, SandboxImage
from ramify.planes.sandbox.layer_names import named_images, untag
from ramify.planes.sandbox.layers import LayerStore

Files = dict[str, bytes | tarfile.TarInfo]


def tar_of(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def owned(name: str, uid: int, gid: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.uid, info.gid = uid, gid
    return info


def digest(layer: bytes) -> str:
    return f"sha256:{hashlib.sha256(layer).hexdigest()}"


LOWER = tar_of({"etc/conf": b"1", "etc/gone": b"1", "dir/a": b"1"})
UPPER = tar_of({"etc/.wh.gone": b"", "dir/.wh..wh..opq": b"", "dir/c": b"2"})
HEALTH = {"Test": ["CMD", "true"], "Interval": 1_500_000_000, "Retries": 3}


def saved(layers: list[bytes], members: Files | None = None) -> bytes:
    """As `docker save` writes it: the descriptions come after the layers."""
    names = [f"l{number}/layer.tar" for number in range(len(layers))]
    config = {
        "config": {"Env": ["A=b"], "Cmd": ["run"], "Healthcheck": HEALTH},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    manifest = [{"Config": "c.json", "RepoTags": None, "Layers": names}]
    files: Files = dict(zip(names, layers, strict=True))
    files |= {"c.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    return tar_of(files | (members or {}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path_factory.mktemp("images") / "store")
    yield store
    store.close()


def receive(
    store: LayerStore,
    data: bytes,
    cuts: list[int] | None = None,
    layers: tuple[bytes, ...] = (),
) -> SandboxImage:
    incoming = store.receive("a test", ("app:1",), tuple(digest(layer) for layer in layers))
    try:
        before = 0
        for cut in [*sorted(cuts or []), len(data)]:
            incoming.feed(data[before:cut])
            before = cut
        return incoming.finish()
    finally:
        incoming.close()


def trees(store: LayerStore, image: SandboxImage) -> list[list[str]]:
    """Names in the layers of an image, the lowest first."""
    found: list[list[str]] = []
    for lower in reversed(store.lowers(image)):
        top = store.layers_dir / lower
        names = (path.relative_to(top).as_posix() for path in top.rglob("*") if not path.is_dir())
        found.append(sorted(names))
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(saved([LOWER, UPPER]))), max_size=6))
def test_however_it_is_cut_the_image_is_the_same(store: LayerStore, cuts: list[int]) -> None:
    image = receive(store, saved([LOWER, UPPER]), cuts)
    assert image == store.resolve("app:1")
    assert trees(store, image) == [["dir/a", "etc/conf", "etc/gone"], ["dir/c", "etc/gone"]]
    assert (image.env, image.cmd) == ({"A": "b"}, ("run",))
    assert image.healthcheck == Healthcheck(("CMD", "true"), 1.5, retries=3)


def test_it_is_the_image_that_a_file_gives(store: LayerStore, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(saved([LOWER, UPPER]))
    assert store.import_tar(tmp_path / "image.tar", name="x") == receive(
        store, saved([LOWER, UPPER])
    )


def test_equal_layers_may_be_links_and_occur_twice(store: LayerStore) -> None:
    """The Docker daemon writes a link for a layer that the archive has already."""
    archive = saved(
        [LOWER, UPPER, LOWER], {"l2/layer.tar": link("l2/layer.tar", "../l0/layer.tar")}
    )
    names = trees(store, receive(store, archive))
    assert names == [["dir/a", "etc/conf", "etc/gone"], ["dir/c", "etc/gone"], names[0]]


def test_oci_blobs_and_gzip(store: LayerStore) -> None:
    """As newer daemons write it: members named by their digests, packed or not."""
    blobs: Files = {}

    def put(data: bytes) -> str:
        blobs[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
        return digest(data)

    packed = gzip.compress(LOWER[:1000]) + gzip.compress(LOWER[1000:])  # members in a row
    layers = [{"digest": put(packed)}, {"digest": put(UPPER)}]
    config = {"rootfs": {"diff_ids": [digest(LOWER), digest(UPPER)]}}
    manifest = {"config": {"digest": put(json.dumps(config).encode())}, "layers": layers}
    blobs["index.json"] = json.dumps(
        {"manifests": [{"digest": put(json.dumps(manifest).encode())}]}
    ).encode()
    blobs["oci-layout"] = b"{}"
    image = receive(store, tar_of(blobs))
    assert trees(store, image) == trees(store, receive(store, saved([LOWER, UPPER])))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved([LOWER])[:3000], "ended early|no end"),
        (saved([LOWER]).replace(b"etc/conf", b"etc/c0nf"), "bad image layer"),
        (saved([LOWER]).replace(digest(LOWER)[7:].encode(), b"0" * 64), "damaged: its digest"),
        (saved([LOWER], {"l0/layer.tar": gzip.compress(LOWER)[:-9] + b"12345678x"}), "damaged"),
        (saved([LOWER], {"l0/layer.tar": b"not an archive"}), "bad image layer"),
        (tar_of({"etc/passwd": b"root"}), "no image archive"),
        (tar_of({"manifest.json": b"[]"}), "holds 0 images"),
        (tar_of({"manifest.json": b"[" * 100}), "manifest.json"),
        (b"garbage" * 200, "bad image archive"),
    ],
    ids=["short", "header", "digest", "gzip", "layer", "rootfs", "empty", "json", "garbage"],
)
def test_what_is_spoilt_is_refused_and_leaves_nothing(
    data: bytes, says: str, tmp_path: Path
) -> None:
    store = LayerStore(tmp_path / "store")
    try:
        with pytest.raises(ConfigError, match=says):
            receive(store, data)
        assert os.listdir(store.layers_dir) == []
        (engine,) = (store.root / "engines").iterdir()
        assert os.listdir(engine) == ["lock"]
    finally:
        store.close()


def test_zstd_is_refused_by_name(store: LayerStore) -> None:
    archive = saved([LOWER], {"l0/layer.tar": b"\x28\xb5\x2f\xfd" + bytes(600)})
    with pytest.raises(UnsupportedError, match="zstd"):
        receive(store, archive)


def test_layers_that_are_there_are_not_unpacked_again(store: LayerStore) -> None:
    """Yet they are checked, and unpacked where they lie on something else."""
    base = receive(store, saved([LOWER]), layers=(LOWER,))
    other = tar_of({"other": b"x"})
    image = receive(store, saved([LOWER, other]), layers=(LOWER, other))
    assert store.lowers(image)[1:] == store.lowers(base)
    assert trees(store, image) == [*trees(store, base), ["other"]]
    again = receive(store, saved([LOWER, other, LOWER]), layers=(LOWER, other, LOWER))
    assert trees(store, again) == [*trees(store, image), *trees(store, base)]
    turned = receive(store, saved([other, LOWER]), layers=(other, LOWER))
    assert trees(store, turned) == [["other"], *trees(store, base)]
    spoilt = saved([LOWER, other]).replace(b"etc/gone", b"etc/g0ne")
    with pytest.raises(ConfigError, match="damaged: its digest"):
        receive(store, spoilt, layers=(LOWER, other))
    with pytest.raises(ConfigError, match="not the image that was announced"):
        receive(store, saved([LOWER]), layers=(LOWER, other))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owners_beyond_those_of_sandboxes_are_told(store: LayerStore) -> None:
    layer = tar_of({"a": owned("a", 65535, 65535), "b": owned("b", 65536, 5)})
    image = receive(store, saved([layer]))
    top = store.layers_dir / store.lowers(image)[0]
    assert (top / "a").stat().st_uid == 65535
    assert ((top / "b").stat().st_uid, (top / "b").stat().st_gid) == (65534, 5)
    (stored,) = [one for one in named_images(store.root) if one.id == image.id]
    assert stored.owners_lost == 1


def test_a_name_taken_back_frees_the_image_when_nobody_uses_it(tmp_path: Path) -> None:
    engine, other = LayerStore(tmp_path / "store"), LayerStore(tmp_path / "store")
    try:
        image = receive(engine, saved([LOWER]))
        assert untag(other.root, "app:1")
        assert not untag(other.root, "app:1")
        other.sweep()
        assert engine.lowers(image)  # `engine` may still start sandboxes on it
        engine.close()
        assert other.sweep() == 0  # closing has swept already
        assert os.listdir(other.layers_dir) == []
        assert named_images(other.root) == []
    finally:
        other.close()


def test_names_with_a_digest_keep_it(store: LayerStore) -> None:
    image = receive(store, saved([LOWER]))
    pin = "@sha256:" + "0123456789abcdef" * 4
    store.tag("docker.io/library/debian:12" + pin, image.id)
    assert store.resolve("debian" + pin) == image
    assert store.resolve("debian") is None
    with pytest.raises(ConfigError, match="not an image name"):
        store.tag("debian@sha256:short", image.id)
