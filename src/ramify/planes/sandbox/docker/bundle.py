"""The runtime that a container is given: this interpreter, what it needs, and the supervisor.

An image needs nothing for it: the bundle brings its own dynamic loader and C library, so it runs
in images without Python and of another C library. It is a tar archive of about 30 MB, laid out for
`MOUNT`; a digest names it, so that one copy per daemon serves every container.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import io
import marshal
import os
import platform
import re
import struct
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ramify.contracts.errors import SandboxStartError

MOUNT = "/.ramify"
"""Where a container sees the runtime."""

_APP = "app"
_PREFIX = "ramify.planes.sandbox."
_MAIN = _PREFIX + "docker.supervisor"
_BOOT = (
    f"import sys; sys.path.append({MOUNT + '/' + _APP!r}); "
    "from ramify.planes.sandbox.docker.supervisor import main; main()"
)
_IMPORT = re.compile(
    r"^[ ]*(?:from[ ]+([\w.]+)[ ]+import[ ]+(\([^)]*\)|[^\n]+)|import[ ]+([\w.]+))", re.MULTILINE
)
_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le"}
_LIST_MODULES = """
import sys
for name in sys.argv[1:]:
    try:
        __import__(name)
    except ImportError:
        pass
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and name != "__main__":
        print(name, path, sep="\\t")
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A runtime that can be packed.

    `digest` identifies it (this interpreter and our sources), `command` starts the supervisor.
    `executable` is empty where the image's own `python3` is to run it.
    """

    digest: str
    command: tuple[str, ...]
    executable: str
    loader: str
    sources: dict[str, bytes]
    imported: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of the bundle: its path under MOUNT, its mode, its bytes."""

    path: str
    mode: int
    data: bytes


def make_recipe(daemon_os: str, daemon_arch: str) -> Recipe:
    """The recipe for a daemon: with this interpreter where it can run there; blocking, quick.

    Otherwise (another system or architecture) it holds the supervisor alone, for the `python3` of
    the image. Raises: SandboxStartError (the interpreter cannot be read).
    """
    sources, imported = _closure()
    executable = loader = ""
    command = ["python3", "-I", "-S", "-c", _BOOT]
    identity = [sys.version]
    if sys.platform == "linux" == daemon_os and _ARCH.get(platform.machine()) == daemon_arch:
        executable, loader = _interpreter()
        init = f"{MOUNT}/bin/init"
        inhibit = ["--inhibit-rpath", init] if Path(loader).name.startswith("ld-linux") else []
        start = [f"{MOUNT}/lib/{Path(loader).name}", *inhibit, "--library-path", f"{MOUNT}/lib"]
        command = [*start, init, *command[1:]]
        stat = Path(executable).stat()
        identity += [executable, str(stat.st_size), str(stat.st_mtime_ns)]
    digest = hashlib.sha256(repr((command, identity, sorted(sources.items()))).encode())
    return Recipe(
        digest.hexdigest()[:24], tuple(command), executable, loader, sources, tuple(imported)
    )


async def pack(recipe: Recipe) -> bytes:
    """The tar archive of what is to lie under `MOUNT`. Raises: SandboxStartError."""
    entries = _application(recipe.sources, compiled=bool(recipe.executable))
    if not recipe.executable:
        return await asyncio.to_thread(_archive, entries)
    modules = await _modules(recipe.executable, recipe.imported)
    extensions = [path for path in modules.values() if ".so" in Path(path).name]
    libraries = await _libraries(recipe.loader, [recipe.executable, *extensions])
    libraries[Path(recipe.loader).name] = recipe.loader

    def assemble() -> bytes:
        shared = [_file(f"lib/{name}", path) for name, path in libraries.items()]
        init = _file("bin/init", recipe.executable)
        return _archive([init, *shared, *_stdlib(modules), *entries])

    try:
        return await asyncio.to_thread(assemble)
    except OSError as error:
        raise SandboxStartError(f"cannot read this Python interpreter: {error}") from error


def _closure() -> tuple[dict[str, bytes], list[str]]:
    """Our modules that the supervisor imports, directly or not, and all others they name."""
    root = Path(__file__).parent.parent
    sources: dict[str, bytes] = {}
    others: set[str] = set()
    queue = [_MAIN]
    while queue:
        name = queue.pop()
        if name in sources:
            continue
        path = root.joinpath(*name.removeprefix(_PREFIX).split(".")).with_suffix(".py")
        sources[name] = path.read_bytes()
        for found in _named(sources[name]):
            if not found.startswith("ramify"):
                others.add(found)
            elif root.joinpath(*found.removeprefix(_PREFIX).split(".")).with_suffix(".py").exists():
                queue.append(found)
    return sources, sorted(others)


def _named(source: bytes) -> set[str]:
    """Every module that a source file may import, also within functions.

    By its text: `ast` is not safe in several threads at once before Python 3.12. A sentence that
    looks like an import does no harm.
    """
    names: set[str] = set()
    for origin, listed, plain in _IMPORT.findall(source.decode()):
        if plain:
            names.add(plain)
            continue
        names.add(origin)
        if origin.startswith("ramify"):
            names.update(f"{origin}.{word}" for word in re.findall(r"\w+", listed))
    return names


def _application(sources: dict[str, bytes], *, compiled: bool) -> list[_Entry]:
    """Our modules, in packages that are otherwise empty."""
    parts = _MAIN.split(".")[:-1]
    packages = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    files = {f"{_APP}/{path}/__init__.py": b"" for path in packages}
    files |= {f"{_APP}/{name.replace('.', '/')}.py": data for name, data in sources.items()}
    if compiled:
        return [_code(path, data) for path, data in files.items()]
    return [_Entry(path, 0o644, data) for path, data in files.items()]


async def _modules(executable: str, names: tuple[str, ...]) -> dict[str, str]:
    # `encodings` loads its codecs by name at run time; these are the ones text can ask for.
    wanted = [*names, "encodings.idna", "encodings.ascii", "encodings.latin_1", "os"]
    listed = await _output(executable, "-I", "-S", "-c", _LIST_MODULES, *wanted)
    pairs = (line.split("\t") for line in listed.splitlines())
    return dict(pairs)


async def _libraries(loader: str, objects: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in objects:
        for line in (await _output(loader, "--list", item)).splitlines():
            name, arrow, target = line.strip().partition(" => ")
            path = target.rsplit(" (", 1)[0]
            if arrow and path.startswith("/"):
                found.setdefault(Path(name).name, path)
    return found


async def _output(*argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise SandboxStartError(
            f"{argv[0]} failed while packing the runtime: {err[-500:].decode('utf-8', 'replace')}"
        )
    return os.fsdecode(out)


def _interpreter() -> tuple[str, str]:
    """The binary of this interpreter, and the dynamic loader that it names."""
    executable = os.path.realpath(sys.executable)
    return executable, _loader_of(executable)


def _loader_of(executable: str) -> str:
    """The dynamic loader that an ELF file names (PT_INTERP)."""
    with open(executable, "rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF" or head[4] != 2:
            raise SandboxStartError(f"{executable} is not a 64-bit ELF binary")
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for index in range(count):
            file.seek(table + index * size)
            header = file.read(56)
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", header)
            if kind == 3:
                file.seek(offset)
                return os.fsdecode(os.path.realpath(file.read(length).rstrip(b"\0")))
    raise SandboxStartError(f"{executable} is a static binary without a loader")


def _stdlib(modules: dict[str, str]) -> list[_Entry]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    root = f"{sys.platlibdir}/{version}"
    home = Path(os.__file__).parent
    entries: list[_Entry] = []
    for path in sorted({Path(path) for path in modules.values()}):
        if ".so" in path.name:
            entries.append(_file(f"{root}/lib-dynload/{path.name}", str(path)))
        elif path.is_relative_to(home):
            entries.append(_code(f"{root}/{path.relative_to(home)}", path.read_bytes()))
    return entries


def _file(path: str, host: str) -> _Entry:
    return _Entry(path, 0o755, Path(host).read_bytes())


def _code(path: str, source: bytes) -> _Entry:
    """A module without its source: nothing to compile and nothing to compare at start."""
    code = compile(source, f"{MOUNT}/{path}", "exec", dont_inherit=True, optimize=2)
    header = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + bytes(8)
    return _Entry(path + "c", 0o644, header + marshal.dumps(code))


def _archive(entries: list[_Entry]) -> bytes:
    folders = sorted({str(up) for item in entries for up in Path(item.path).parents} - {"."})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for folder in folders:
            archive.addfile(_header(folder, 0o755, 0, tarfile.DIRTYPE))
        for item in sorted(entries, key=lambda entry: entry.path):
            header = _header(item.path, item.mode, len(item.data), tarfile.REGTYPE)
            archive.addfile(header, io.BytesIO(item.data))
    return buffer.getvalue()


def _header(path: str, mode: int, size: int, kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.mode, header.size, header.type = mode, size, kind
    return header
