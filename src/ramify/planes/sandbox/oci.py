"""Image archives: which layers they hold, in which order, and how the image wants to be run.

Reads the output of `docker save` and OCI layouts, both as tar files.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError

_MAX_JSON = 8 * 1024 * 1024
_MAX_INDEX_DEPTH = 4


class ImageConfig(msgspec.Struct, frozen=True):
    """How an image wants to be run."""

    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


class ImageManifest(msgspec.Struct, frozen=True):
    """One image of an archive: members that are its layers, lowest first."""

    layers: tuple[str, ...]
    config: ImageConfig
    tags: tuple[str, ...] = ()


class _SavedImage(msgspec.Struct):
    config: str = msgspec.field(name="Config")
    layers: list[str] = msgspec.field(name="Layers")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""


class _Descriptor(msgspec.Struct):
    digest: str
    media_type: str = msgspec.field(name="mediaType", default="")
    platform: _Platform | None = None
    annotations: dict[str, str] = {}


class _OciIndex(msgspec.Struct):
    manifests: list[_Descriptor]


class _OciManifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _RunConfig(msgspec.Struct):
    env: list[str] | None = msgspec.field(name="Env", default=None)
    user: str | None = msgspec.field(name="User", default=None)
    workdir: str | None = msgspec.field(name="WorkingDir", default=None)
    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    command: list[str] | None = msgspec.field(name="Cmd", default=None)


class _ConfigFile(msgspec.Struct):
    config: _RunConfig | None = None


def decompressed(raw: IO[bytes], name: str) -> IO[bytes]:
    """`raw` itself, or a reader of what it holds compressed (gzip, bzip2, xz).

    Raises: UnsupportedError (zstd).
    """
    magic = raw.read(6)
    raw.seek(-len(magic), 1)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"BZh"):
        return cast("IO[bytes]", bz2.BZ2File(raw))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast("IO[bytes]", lzma.LZMAFile(raw))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        raise UnsupportedError(f"{name}: zstd is not supported; recompress it with gzip")
    return raw


def read_manifest(archive: tarfile.TarFile, file: Path, architecture: str) -> ImageManifest | None:
    """The image in an opened archive; None if it is a plain root file system.

    Raises: ConfigError (malformed, or several images).
    """
    names = {name.removeprefix("./"): name for name in archive.getnames()}
    if "manifest.json" in names:
        return _saved(archive, names, file)
    if "index.json" in names and "oci-layout" in names:
        return _oci(archive, names, file, architecture)
    return None


def _saved(archive: tarfile.TarFile, names: dict[str, str], file: Path) -> ImageManifest:
    images = _decode(archive, names, "manifest.json", list[_SavedImage], file)
    if len(images) != 1:
        raise ConfigError(f"it holds {len(images)} images; save one at a time", str(file))
    image = images[0]
    config = _decode(archive, names, image.config, _ConfigFile, file)
    layers = tuple(_member(names, layer, file) for layer in image.layers)
    return ImageManifest(layers, _run_config(config), tuple(image.tags or ()))


def _oci(
    archive: tarfile.TarFile, names: dict[str, str], file: Path, architecture: str
) -> ImageManifest:
    index = _decode(archive, names, "index.json", _OciIndex, file)
    tags: tuple[str, ...] = ()
    for _ in range(_MAX_INDEX_DEPTH):
        fitting = [
            item
            for item in index.manifests
            if item.platform is None or item.platform.architecture == architecture
        ]
        if len(fitting) != 1:
            raise ConfigError(
                f"it holds {len(fitting)} images for {architecture}; one is wanted", str(file)
            )
        tag = fitting[0].annotations.get("io.containerd.image.name")
        tags = tags or ((tag,) if tag else ())
        blob = _blob(fitting[0].digest)
        if "index" not in fitting[0].media_type and "list" not in fitting[0].media_type:
            manifest = _decode(archive, names, blob, _OciManifest, file)
            config = _decode(archive, names, _blob(manifest.config.digest), _ConfigFile, file)
            layers = tuple(_member(names, _blob(it.digest), file) for it in manifest.layers)
            return ImageManifest(layers, _run_config(config), tags)
        index = _decode(archive, names, blob, _OciIndex, file)
    raise ConfigError("its index is nested too deeply", str(file))


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _run_config(file: _ConfigFile) -> ImageConfig:
    config = file.config or _RunConfig()
    pairs = (item.partition("=") for item in config.env or ())
    return ImageConfig(
        env={key: value for key, sign, value in pairs if key and sign},
        user=config.user or None,
        workdir=config.workdir or None,
        entrypoint=tuple(config.entrypoint or ()),
        command=tuple(config.command or ()),
    )


def _member(names: dict[str, str], name: str, file: Path) -> str:
    if name not in names:
        raise ConfigError(f"it names {name!r}, which it does not hold", str(file))
    return names[name]


def _decode(
    archive: tarfile.TarFile, names: dict[str, str], name: str, kind: Any, file: Path
) -> Any:
    source = archive.extractfile(_member(names, name, file))
    if source is None:
        raise ConfigError(f"{name} is not a file", str(file))
    try:
        return msgspec.json.decode(source.read(_MAX_JSON), type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{name}: {error}", str(file)) from None
