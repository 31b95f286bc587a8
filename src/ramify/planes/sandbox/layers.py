"""A store of images made of overlay layers.

An image is a stack of layers, a layer a directory that never changes once it is in the store.
Freezing a running file system renames its upper directory into the store, so its cost does not
depend on the size of the state. What it gives names the state; a digest of the content is
computed when somebody asks for it, and that reads the changed files once (SHA-256 of the page
cache on up to 8 cores).

Every method blocks (call it in a thread) and may be called from any thread. Several engines can
share a store: each open `LayerStore` is one engine, whose scratch directories another one removes
once it is dead.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import platform
import tarfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from ramify.contracts.errors import ConfigError, SandboxError, StoreError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.digests import digest_stack
from ramify.planes.sandbox.layer_claim import Claim, chain_digest, trash_in
from ramify.planes.sandbox.layer_copy import copy_over
from ramify.planes.sandbox.layer_freeze import MAX_DEPTH, Freezer
from ramify.planes.sandbox.layer_index import (
    ImageRecord,
    add_ref,
    drop_ref,
    exclusive,
    full_name,
    new_id,
    read_image,
    read_layer,
    read_tags,
    write_json,
)
from ramify.planes.sandbox.layer_origin import hold_known
from ramify.planes.sandbox.layer_scratch import LayerScratch, make_directories
from ramify.planes.sandbox.layer_stream import Incoming
from ramify.planes.sandbox.layer_sweep import hold_lock, sweep_store
from ramify.planes.sandbox.oci import (
    MAX_JSON,
    ImageConfig,
    ImageManifest,
    decompressed,
    read_manifest,
)

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class LayerStore:
    """The layers and images below `root`, which is made if need be.

    The file system must not itself be an overlay. Close it with `close`.

    Raises: StoreError (the directory cannot be used).
    """

    def __init__(self, root: Path, *, max_depth: int = MAX_DEPTH) -> None:
        self.root = root.absolute()
        self._engine = new_id()
        self._home = self.root / "engines" / self._engine
        self._freezer = Freezer(self.root, self._home, self._engine, max_depth)
        try:
            # Layers hold set-id files that were never meant for this machine's users.
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("layers", "images", "engines"):
                (self.root / name).mkdir(exist_ok=True)
            with exclusive(self.root):  # a sweep must not see the directory before its lock
                self._home.mkdir()
                self._lock_fd = hold_lock(self._home / "lock")
        except OSError as error:
            raise StoreError(f"the layer store {root} cannot be used: {error}") from error

    def close(self) -> None:
        """Remove this engine's scratch directories and untagged frozen images. Idempotent."""
        if self._lock_fd >= 0:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)  # also where a child inherited it
            os.close(self._lock_fd)
            self._lock_fd = -1
            sweep_store(self.root)

    def sweep(self) -> int:
        """Remove what dead engines left behind; returns how many things that were.

        These are scratch directories, half-made layers, frozen images that no tag names, images
        that an unclean shutdown of the machine may have spoilt, pristine images that have lost
        their names and that no live engine uses, and layers nobody needs.
        """
        return sweep_store(self.root)

    @property
    def layers_dir(self) -> Path:
        """The directory that `lowers` are relative to."""
        return self.root / "layers"

    # Importing

    def import_tar(self, file: Path, *, name: str | None = None) -> SandboxImage:
        """Import a root file system (`docker export`, debootstrap) or an image (`docker save`,
        OCI layout), from a tar file that may be compressed with gzip, bzip2 or xz.

        The image gets the tag `name`, and those that the archive gives it. Importing the same
        content again finds what is there.

        Raises: ConfigError (malformed, or not exactly one image), UnsupportedError (zstd).
        """
        with open(file, "rb") as raw, self._claim() as claim:
            plain = decompressed(raw, file.name)
            try:
                with tarfile.open(fileobj=plain, mode="r:") as archive:
                    members = {it.removeprefix("./"): it for it in archive.getnames()}
                    manifest = read_manifest(
                        members,
                        lambda member: _limited(archive.extractfile(member)),
                        str(file),
                        _architecture(),
                    )
                    if manifest is None:
                        plain.seek(0)
                        claim.unpack(plain, whiteouts=False)
                        manifest = ImageManifest((), ImageConfig())
                    for member in manifest.layers:
                        layer = archive.extractfile(member)
                        if layer is None:
                            raise ConfigError(f"the layer {member} is not a file", str(file))
                        claim.unpack(decompressed(layer, member), whiteouts=True)
            except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ConfigError(f"not a tar archive: {error}", str(file)) from None
            names = manifest.tags + ((name,) if name else ())
            return self._register(claim, manifest.config, names)

    def import_tree(self, directory: Path, *, name: str | None = None) -> SandboxImage:
        """Import a directory: an OCI layout, or a root file system (copied; by reflink where
        possible).

        Raises: ConfigError (a malformed layout), UnsupportedError (zstd).
        """
        with self._claim() as claim:
            manifest = self._layout(directory)
            if manifest is None:
                claim.fill(lambda diff: copy_over(directory, diff))
                return self._register(claim, ImageConfig(), (name,) if name else ())
            for member in manifest.layers:
                with open(directory / member, "rb") as layer:
                    claim.unpack(decompressed(layer, member), whiteouts=True)
            return self._register(claim, manifest.config, manifest.tags + ((name,) if name else ()))

    def _layout(self, directory: Path) -> ImageManifest | None:
        if not (directory / "oci-layout").is_file():
            return None
        found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
        members = {str(path): str(path) for path in found}

        def read(member: str) -> bytes | None:
            with open(directory / member, "rb") as file:
                return file.read(MAX_JSON)

        return read_manifest(members, read, str(directory), _architecture())

    def receive(
        self, source: str, names: tuple[str, ...], diff_ids: tuple[str, ...] = ()
    ) -> Incoming:
        """Begin to import an image archive that comes in pieces; it gets the tags `names`.

        `source` says where from, for messages. Nothing of it is in the store before `finish`.
        Given its `diff_ids`, layers that the store has are not unpacked again.
        """
        claim = self._claim()

        def register(manifest: ImageManifest) -> SandboxImage:
            return self._register(claim, manifest.config, names)

        try:
            held = hold_known(self.root, claim, diff_ids)
        except BaseException:
            claim.__exit__(None, None, None)
            raise
        return Incoming(self.root, claim, source, _architecture(), held, register)

    def _claim(self) -> Claim:
        return Claim(self.root, self._home, self._engine)

    def _register(self, claim: Claim, config: ImageConfig, names: tuple[str, ...]) -> SandboxImage:
        digest = chain_digest(claim.digest, msgspec.json.encode(config, order="sorted"))
        record = ImageRecord(
            id=digest[:16],
            layers=tuple(reversed(claim.layers)),
            digest=digest,
            size_bytes=claim.size_bytes,
            env=config.env,
            user=config.user,
            workdir=config.workdir,
            entrypoint=config.entrypoint,
            command=config.command,
            healthcheck=config.healthcheck,
            owners_lost=claim.owners_lost,
            base_depth=len(claim.layers),
        )
        if not record.layers:
            raise ConfigError("the image has no layers")
        wanted = [full_name(name) for name in names]
        with exclusive(self.root):
            add_ref(self.root, record.layers[0], f"i-{record.id}")
            write_json(self.root / "images" / f"{record.id}.json", record, sync=True)
            tags = read_tags(self.root) | dict.fromkeys(wanted, record.id)
            write_json(self.root / "tags.json", tags, sync=True)
            self._pin(record.id)
        return record.as_image()

    # Names

    def _pin(self, image_id: str) -> None:
        """Keep an image while this engine lives, whatever becomes of its names."""
        (self._home / f"pin-{image_id}").touch()

    def tag(self, name: str, image_id: str) -> None:
        """Let `name` (`debian:bookworm`; tag `latest` if none) mean an image from now on.

        A tagged image outlives its engine. Raises: ConfigError (bad name), StoreError.
        """
        wanted = full_name(name)
        with exclusive(self.root):
            if read_image(self.root, image_id) is None:
                raise StoreError(f"no image {image_id!r} in {self.root}")
            tags = read_tags(self.root) | {wanted: image_id}
            write_json(self.root / "tags.json", tags, sync=True)

    def resolve(self, name: str) -> SandboxImage | None:
        """The image that a name means, kept while this engine lives; None if there is none.

        Raises: ConfigError (bad name).
        """
        wanted = full_name(name)
        with exclusive(self.root):
            image_id = read_tags(self.root).get(wanted)
            record = read_image(self.root, image_id) if image_id else None
            if record is None:
                return None
            self._pin(record.id)
        return record.as_image()

    # Running

    def lowers(self, image: SandboxImage) -> tuple[str, ...]:
        """The directories of an image's layers below `layers_dir`, top first.

        Empty for a pristine image that is not of this store (the host's root); it also lies below
        the layers of images frozen from it (see `base`). Raises: StoreError (it is gone).
        """
        record = self._record(image)
        return tuple(f"{layer}/diff" for layer in record.layers) if record else ()

    def base(self, image: SandboxImage) -> str | None:
        """Id of the image outside the store that lies below `lowers`, if one does."""
        record = self._record(image)
        return record.base if record else image.id

    def _record(self, image: SandboxImage) -> ImageRecord | None:
        record = read_image(self.root, image.id)
        if record is None and not image.pristine:
            raise StoreError(f"the image {image.id} is gone from {self.root}: it was discarded")
        return record

    def new_scratch(
        self,
        image: SandboxImage | None = None,
        *,
        parts: tuple[str, ...] = ("",),
        owner: int | None = None,
    ) -> LayerScratch:
        """Empty `upper` and `work` directories on top of `image`, which is kept meanwhile.

        `parts` are the directories below `upper` that are mounted each for itself ("": `upper` is),
        `owner` the user and group that they belong to (None: ours).

        Raises: StoreError (the image is gone).
        """
        with exclusive(self.root):
            record = self._record(image) if image else None
            scratch = LayerScratch(new_id(), self._home, image, record, parts)
            if scratch.top:
                add_ref(self.root, scratch.top, scratch.holder)
        try:
            return make_directories(scratch, owner)
        except BaseException:
            self.drop(scratch)
            raise

    def drop(self, scratch: LayerScratch) -> None:
        """Remove a scratch directory that nothing is mounted on any more. Idempotent."""
        with trash_in(self._home) as trash, exclusive(self.root):
            if scratch.path.exists():
                os.rename(scratch.path, trash / scratch.id)
            if scratch.top:
                drop_ref(self.root, scratch.top, scratch.holder, trash)

    # Freezing

    def freeze(self, scratch: LayerScratch) -> SandboxImage:
        """Make `upper` the top layer of a new image on top of the scratch's image.

        Nothing may be mounted on it or write to it any more; the scratch is spent. The image is
        this engine's until discarded (see `sweep`), and does not survive a crash of the machine.
        Its digest names the state, not the content (see `content_digest`); `size_bytes` is -1
        where counting would take long. Where nothing was written it has the layers and the digest
        of the image below, and is discarded for itself all the same.

        Costs a rename; on top of `max_depth` frozen layers also links to all their files.

        Raises: SandboxError (no room, or too many layers, which cannot be merged).
        """
        try:
            return self._freezer.freeze(scratch)
        except BaseException as error:
            self.drop(scratch)
            if isinstance(error, OSError):
                raise SandboxError(f"the file system cannot be frozen: {error}") from error
            raise

    # Comparing

    def content_digest(self, image: SandboxImage) -> str:
        """A digest of the files of an image: the same for what was frozen or merged in other steps.

        It covers the pristine image below, and of everything changed since then path, type, mode,
        owner, extended attributes and content (not times, nor link counts). Equal digests mean
        equal files. Reads what was changed, once per image. Blocking.

        Raises: StoreError (it is gone), SandboxError (nested too deeply), OSError.
        """
        with self._held(image) as record:
            if record is None:
                return chain_digest(image.id, digest_stack([])[0])
            if record.content is None:
                cut = len(record.layers) - record.base_depth
                base = read_layer(self.root, record.layers[cut]) if record.base_depth else None
                below = base.digest if base else record.base or ""
                diffs = [self.layers_dir / layer / "diff" for layer in record.layers[:cut]]
                own, _size = digest_stack(diffs)
                if diffs:
                    root = diffs[0].stat()
                    own += f" {root.st_mode} {root.st_uid} {root.st_gid}"
                record = msgspec.structs.replace(record, content=chain_digest(below, own))
                with exclusive(self.root):
                    if read_image(self.root, image.id) is not None:
                        path = self.root / "images" / f"{image.id}.json"
                        write_json(path, record, sync=record.pristine)
            return record.content or ""

    @contextmanager
    def _held(self, image: SandboxImage) -> Generator[ImageRecord | None]:
        """Keep an image's layers for a while."""
        holder = f"s-{self._engine}-{new_id()}"
        with exclusive(self.root):
            record = self._record(image)
            if record:
                add_ref(self.root, record.layers[0], holder)
        try:
            yield record
        finally:
            if record:
                with trash_in(self._home) as trash, exclusive(self.root):
                    drop_ref(self.root, record.layers[0], holder, trash)

    # Discarding

    def discard(self, image: SandboxImage) -> None:
        """Free a frozen image; its layers go when no image or scratch needs them. Idempotent.

        Pristine images stay.
        """
        with trash_in(self._home) as trash, exclusive(self.root):
            record = read_image(self.root, image.id)
            if record is None or record.pristine:
                return
            (self.root / "images" / f"{record.id}.json").unlink()
            drop_ref(self.root, record.layers[0], f"i-{record.id}", trash)


def _limited(source: IO[bytes] | None) -> bytes | None:
    """A description, or as much of it as can be one."""
    return source.read(MAX_JSON) if source is not None else None


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())
