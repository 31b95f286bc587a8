"""Kills an engine before each thing it does to a layer store; a program of its own.

    python layer_crashes.py DIRECTORY

Every run is the same: freezes with and without changes, one that merges, discards of parents and
leaves, a drop and a sweep. The engine is killed (SIGKILL) before its first change to the file
system, then before its second, and so on until it comes to its end. After each death another
engine sweeps, and whatever is not in order is printed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from layer_order import disorder

from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox.layers import LayerStore

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.chown")


def main(directory: str) -> None:
    """Print how many places there were, then what was wrong after a death in any of them."""
    wrong: list[str] = []
    number, over = 0, False
    while not over:
        number += 1
        at = Path(directory) / str(number)
        at.mkdir()
        status = _run_killed(at, number)
        over = status == 0
        if not over and status != signal.SIGKILL:
            wrong.append(f"{number}: the engine ended with {status}")
        wrong += [f"{number}: {text}" for text in _aftermath(at)]
        shutil.rmtree(at)
    print(number, *wrong, sep="\n")


def _run_killed(at: Path, number: int) -> int:
    """Run an engine that is killed at its `number`th change; its wait status."""
    store = LayerStore(at / "store", max_depth=2)
    (at / "tree").mkdir()
    (at / "tree" / "f").write_text("base")
    store.import_tree(at / "tree", name="base")
    store.close()
    pid = os.fork()
    if pid == 0:
        try:
            _arm(str(at), number)
            _engine(at / "store")
        except BaseException as error:
            sys.stderr.write(f"{number}: {error!r}\n")
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def _arm(below: str, number: int) -> None:
    left = number

    def hook(event: str, arguments: Sequence[object]) -> None:
        nonlocal left
        if event == "open":
            flags = arguments[2]
            changes = isinstance(flags, int) and bool(flags & (os.O_CREAT | os.O_TRUNC))
            if not changes or not str(arguments[0]).startswith(below):
                return
        elif event not in _CHANGES:
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _engine(root: Path) -> None:
    store = LayerStore(root, max_depth=2)
    base = store.resolve("base")
    assert base is not None

    def grow(image: SandboxImage, *names: str) -> SandboxImage:
        scratch = store.new_scratch(image)
        for name in names:
            (scratch.upper / name).write_text(name)
        return store.freeze(scratch)

    one = grow(base, "a")
    same = grow(one)
    store.discard(one)
    two = grow(same, "a", "b")
    store.tag("kept:1", two.id)
    three = grow(two, "c")  # merges
    child = store.new_scratch(three)
    store.discard(three)
    store.discard(same)
    (child.upper / "d").write_text("d")
    store.discard(store.freeze(child))
    store.drop(store.new_scratch(two))
    store.sweep()
    store.close()


def _aftermath(at: Path) -> list[str]:
    store = LayerStore(at / "store")
    store.sweep()
    own = store.new_scratch()
    wrong = disorder(store.root, {own.home.name})
    wrong += ["a second sweep found something"] if store.sweep() else []
    base, kept = store.resolve("base"), store.resolve("kept:1")
    expected = {"f"} if kept is None else {"f", "a", "b"}
    image = kept or base
    if image is None:
        return [*wrong, "the base is gone"]
    scratch = store.new_scratch(image)
    found = {name for lower in scratch.lowers for name in os.listdir(store.layers_dir / lower)}
    wrong += [] if found == expected else [f"{sorted(found)} is not {sorted(expected)}"]
    store.close()
    leftover = os.listdir(store.root / "engines")
    return wrong + ([f"left: {leftover}"] if leftover else [])


if __name__ == "__main__":
    main(sys.argv[1])
