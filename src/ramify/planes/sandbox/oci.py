"""Image archives: which layers they hold, in which order, and how the image wants to be run.

Reads the output of `docker save` and OCI layouts, both as tar files.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar, cast

import msgspec

from ramify.contracts.errors import ConfigError, UnsupportedError
from ramify.contracts.sandbox import Healthcheck

MAX_JSON = 8 * 1024 * 1024
"""No description in an archive is larger, in bytes."""
_MAX_INDEX_DEPTH = 4

T = TypeVar("T")


class ImageConfig(msgspec.Struct, frozen=True):
    """How an image wants to be run."""

    env: dict[str, str] = {}
    user: str | None = None
    workdir: str | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None


class ImageManifest(msgspec.Struct, frozen=True):
    """One image of an archive: members that are its layers, lowest first.

    `diff_ids` are the digests of the layers' plain archives, in the same order, or empty.
    """

    layers: tuple[str, ...]
    config: ImageConfig
    tags: tuple[str, ...] = ()
    diff_ids: tuple[str, ...] = ()


Reader = Callable[[str], bytes | None]
"""Reads a member of an archive by its name there; None if it is no file."""


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


class _Health(msgspec.Struct):
    test: list[str] | None = msgspec.field(name="Test", default=None)
    interval: int = msgspec.field(name="Interval", default=0)
    timeout: int = msgspec.field(name="Timeout", default=0)
    start_period: int = msgspec.field(name="StartPeriod", default=0)
    retries: int = msgspec.field(name="Retries", default=0)


class _RunConfig(msgspec.Struct):
    env: list[str] | None = msgspec.field(name="Env", default=None)
    user: str | None = msgspec.field(name="User", default=None)
    workdir: str | None = msgspec.field(name="WorkingDir", default=None)
    entrypoint: list[str] | None = msgspec.field(name="Entrypoint", default=None)
    command: list[str] | None = msgspec.field(name="Cmd", default=None)
    health: _Health | None = msgspec.field(name="Healthcheck", default=None)


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _ConfigFile(msgspec.Struct):
    config: _RunConfig | None = None
    rootfs: _RootFs | None = None


_saved_images = msgspec.json.Decoder(list[_SavedImage])
_run_configs = msgspec.json.Decoder(_RunConfig)
_config_files = msgspec.json.Decoder(_ConfigFile)
_indexes = msgspec.json.Decoder(_OciIndex)
_manifests = msgspec.json.Decoder(_OciManifest)


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


def read_manifest(
    names: Mapping[str, str], read: Reader, source: str, architecture: str
) -> ImageManifest | None:
    """The image in an archive; None if it is a plain root file system.

    Args:
        names: members by their name without a leading `./`, as they are called there.
        read: reads one.
        source: what it is, for messages.
        architecture: the one wanted, where there are several.

    Raises: ConfigError (malformed, or several images).
    """
    archive = _Archive(names, read, source)
    if "manifest.json" in names:
        return _saved(archive)
    if "index.json" in names and "oci-layout" in names:
        return _oci(archive, architecture)
    return None


def image_config(raw: Mapping[str, Any]) -> ImageConfig:
    """How an image wants to be run, from the `Config` that a Docker daemon tells.

    Raises: ConfigError.
    """
    try:
        return _run_config(_run_configs.decode(msgspec.json.encode(raw)))
    except msgspec.ValidationError as error:
        raise ConfigError(f"the image's configuration: {error}") from None


class _Archive:
    """The descriptions in an archive."""

    def __init__(self, names: Mapping[str, str], read: Reader, source: str) -> None:
        self._names, self._read, self.source = names, read, source

    def member(self, name: str) -> str:
        if name not in self._names:
            raise ConfigError(f"it names {name!r}, which it does not hold", self.source)
        return self._names[name]

    def decode(self, name: str, decoder: msgspec.json.Decoder[T]) -> T:
        raw = self._read(self.member(name))
        if raw is None:
            raise ConfigError(f"{name} is not a file", self.source)
        try:
            return decoder.decode(raw)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{name}: {error}", self.source) from None


def _saved(archive: _Archive) -> ImageManifest:
    images = archive.decode("manifest.json", _saved_images)
    if len(images) != 1:
        raise ConfigError(f"it holds {len(images)} images; save one at a time", archive.source)
    image = images[0]
    config = archive.decode(image.config, _config_files)
    return _manifest(archive, image.layers, config, tuple(image.tags or ()))


def _oci(archive: _Archive, architecture: str) -> ImageManifest:
    index = archive.decode("index.json", _indexes)
    tags: tuple[str, ...] = ()
    for _ in range(_MAX_INDEX_DEPTH):
        fitting = [
            item
            for item in index.manifests
            if item.platform is None or item.platform.architecture == architecture
        ]
        if len(fitting) != 1:
            raise ConfigError(
                f"it holds {len(fitting)} images for {architecture}; one is wanted", archive.source
            )
        tag = fitting[0].annotations.get("io.containerd.image.name")
        tags = tags or ((tag,) if tag else ())
        blob = _blob(fitting[0].digest)
        if "index" not in fitting[0].media_type and "list" not in fitting[0].media_type:
            manifest = archive.decode(blob, _manifests)
            config = archive.decode(_blob(manifest.config.digest), _config_files)
            return _manifest(archive, [_blob(it.digest) for it in manifest.layers], config, tags)
        index = archive.decode(blob, _indexes)
    raise ConfigError("its index is nested too deeply", archive.source)


def _manifest(
    archive: _Archive, layers: list[str], config: _ConfigFile, tags: tuple[str, ...]
) -> ImageManifest:
    diff_ids = tuple(config.rootfs.diff_ids or ()) if config.rootfs else ()
    if diff_ids and len(diff_ids) != len(layers):
        raise ConfigError(
            f"it has {len(layers)} layers, but its configuration names {len(diff_ids)}",
            archive.source,
        )
    members = tuple(archive.member(layer) for layer in layers)
    return ImageManifest(members, _run_config(config.config or _RunConfig()), tags, diff_ids)


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _run_config(config: _RunConfig) -> ImageConfig:
    pairs = (item.partition("=") for item in config.env or ())
    health = config.health
    return ImageConfig(
        env={key: value for key, sign, value in pairs if key and sign},
        user=config.user or None,
        workdir=config.workdir or None,
        entrypoint=tuple(config.entrypoint or ()),
        command=tuple(config.command or ()),
        healthcheck=_healthcheck(health) if health and health.test else None,
    )


def _healthcheck(health: _Health) -> Healthcheck:
    nanoseconds = 1e9
    return Healthcheck(
        test=tuple(health.test or ()),
        interval_sec=health.interval / nanoseconds,
        timeout_sec=health.timeout / nanoseconds,
        start_period_sec=health.start_period / nanoseconds,
        retries=health.retries,
    )
