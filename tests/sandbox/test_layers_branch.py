"""Layer stores under branching: unchanged states, deep chains, nested branches, schedules."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from layer_order import disorder
from layer_worlds import File, Model, Mounted

from ramify.contracts.errors import SandboxError, StoreError
from ramify.contracts.sandbox import SandboxImage
from ramify.planes.sandbox import layer_freeze
from ramify.planes.sandbox.layers import LayerStore

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: overlay mounts"),
    pytest.mark.namespaces,
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    store = LayerStore(tmp_path / "store")
    yield store
    store.close()


def base(tmp_path: Path, store: LayerStore) -> tuple[SandboxImage, Model]:
    """A pristine image of some files and directories."""
    model, tree = Model(), tmp_path / "tree"
    for path in ("a", "b", "a/c", "b/c"):
        (tree / path).mkdir(parents=True)
        model.dirs[path] = 0o755
    for path in ("c", "a/b", "a/c/d", "b/c/a"):
        (tree / path).write_text(path)
        (tree / path).chmod(0o644)
        model.files[path] = File("file", path.encode())
    return store.import_tree(tree, name="base"), model


def write(mounted: Mounted, path: str) -> Mounted:
    (mounted.at / path).unlink(missing_ok=True)
    (mounted.at / path).write_text(path)
    mounted.model.files[path] = File("file", path.encode())
    return mounted


def layers(store: LayerStore) -> int:
    return len(os.listdir(store.layers_dir))


def test_an_unchanged_state_is_frozen_without_a_layer(tmp_path: Path, store: LayerStore) -> None:
    image, model = base(tmp_path, store)
    at = tmp_path / "mnt"
    first = write(Mounted(store, image, model, at), "new")
    state = first.freeze()
    before = layers(store)
    again = Mounted(store, state, first.model, at)
    again.check()
    (again.at / "passing").write_text("")
    (again.at / "passing").unlink()
    same = again.freeze()
    assert layers(store) == before
    assert same.digest == state.digest
    assert store.content_digest(same) == store.content_digest(state)
    assert (same.parent, same.size_bytes, same.pristine) == (state.id, 0, False)

    store.discard(state)
    store.discard(state)  # a holder that discards twice takes nothing from the other
    with pytest.raises(StoreError, match="gone"):
        store.new_scratch(state)
    child = Mounted(store, same, first.model, at)
    child.check()
    store.discard(same)
    child.check()
    child.drop()
    assert layers(store) == 1


def test_an_unchanged_pristine_state_is_one_too(tmp_path: Path, store: LayerStore) -> None:
    image, model = base(tmp_path, store)
    state = Mounted(store, image, model, tmp_path / "mnt").freeze()
    assert (state.digest, state.pristine, layers(store)) == (image.digest, False, 1)
    assert store.content_digest(state) == store.content_digest(image)
    store.discard(state)
    child = Mounted(store, image, model, tmp_path / "mnt")
    child.check()
    child.drop()


def test_a_change_of_the_root_directory_alone_is_a_change(
    tmp_path: Path, store: LayerStore
) -> None:
    image, model = base(tmp_path, store)
    first = Mounted(store, image, model, tmp_path / "mnt")
    first.at.chmod(0o1777)
    first.model.dirs[""] = 0o1777
    state = first.freeze()
    assert state.digest != image.digest
    child = Mounted(store, state, first.model, tmp_path / "mnt")
    child.check()
    assert child.freeze().digest == state.digest


def test_children_go_on_after_their_parent_is_discarded(tmp_path: Path, store: LayerStore) -> None:
    image, model = base(tmp_path, store)
    first = write(Mounted(store, image, model, tmp_path / "mnt"), "first")
    state = first.freeze()
    children = [Mounted(store, state, first.model, tmp_path / f"mnt{n}") for n in range(3)]
    store.discard(state)
    for number, child in enumerate(children):
        write(child, f"own{number}")
    for child in children:
        child.check()  # siblings never see each other
    frozen = [child.freeze() for child in children]
    assert {one.parent for one in frozen} == {state.id}
    for one, child in zip(frozen, children, strict=True):
        grandchild = Mounted(store, one, child.model, child.at)
        grandchild.check()
        store.discard(one)
        grandchild.check()
        grandchild.drop()
    assert layers(store) == 1
    assert disorder(store.root, {child.scratch.home.name for child in children}) == []


def test_a_chain_of_two_hundred_freezes(tmp_path: Path, store: LayerStore) -> None:
    image, model = base(tmp_path, store)
    rng = random.Random(200)
    for number in range(200):
        mounted = Mounted(store, image, model, tmp_path / "mnt")
        try:
            for _ in range(3):
                mounted.change(rng)
            write(mounted, "count")  # every step changes something
            if number % 9 == 0 or number % 64 in (63, 0, 1):
                mounted.check()
            assert len(mounted.scratch.lowers) <= 65
        except BaseException:
            mounted.unmount()
            raise
        parent, image, model = image, mounted.freeze(), mounted.model
        store.discard(parent)
    last = Mounted(store, image, model, tmp_path / "mnt")
    last.check()
    last.drop()
    store.discard(image)
    assert layers(store) == 1


def test_merging_keeps_inodes_and_copies_nothing(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "store", max_depth=2)
    image, model = base(tmp_path, store)
    at = tmp_path / "mnt"
    first = write(Mounted(store, image, model, at), "data")
    image, model = first.freeze(), first.model
    seen: set[int] = set()
    for number in range(6):
        mounted = write(Mounted(store, image, model, at), f"more{number}")
        seen.add((at / "data").stat().st_ino)
        parent, image, model = image, mounted.freeze(), mounted.model
        store.discard(parent)
    assert len(seen) == 1  # SQLite refuses to write a database whose inode changed
    last = Mounted(store, image, model, at)
    assert (at / "data").stat().st_nlink == 1  # once the layers that were merged are gone
    assert len(last.scratch.lowers) <= 3
    last.drop()
    store.close()


def test_whiteouts_never_show_in_a_directory_that_only_one_layer_has(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "store", max_depth=1)
    image, model = base(tmp_path, store)
    scratch = store.new_scratch(image)
    (scratch.upper / "d").mkdir()
    (scratch.upper / "d" / "f").touch()
    image = store.freeze(scratch)
    scratch = store.new_scratch(image)
    (scratch.upper / "d").mkdir()
    os.mknod(scratch.upper / "d" / "f", stat.S_IFCHR, 0)
    mounted = Mounted(store, store.freeze(scratch), model, tmp_path / "mnt")
    try:
        assert len(mounted.scratch.lowers) == 2
        assert os.listdir(tmp_path / "mnt" / "d") == []
    finally:
        mounted.drop()
    store.close()


def test_content_digests_do_not_depend_on_merging(tmp_path: Path) -> None:
    flat = LayerStore(tmp_path / "flat", max_depth=1)
    tall = LayerStore(tmp_path / "tall")
    digests: list[list[str]] = []
    for store, at in ((flat, tmp_path / "one"), (tall, tmp_path / "two")):
        at.mkdir()
        image, model = base(at, store)
        rng, found = random.Random(5), list[str]()
        for _ in range(20):
            mounted = Mounted(store, image, model, at / "mnt")
            mounted.change(rng)
            image, model = mounted.freeze(), mounted.model
            found.append(store.content_digest(image))
            assert store.content_digest(image) == found[-1]
        digests.append(found)
        store.close()
    assert digests[0] == digests[1]
    assert len(set(digests[0])) > 10


def test_stacks_that_cannot_be_merged_go_on_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_freeze, "_MOST_LAYERS", 5)
    store = LayerStore(tmp_path / "store", max_depth=2)
    image, _model = base(tmp_path, store)

    def grow(image: SandboxImage, number: int) -> SandboxImage:
        scratch = store.new_scratch(image)
        place = scratch.upper
        for _ in range(300):
            place /= "d"
            place.mkdir()
        (scratch.upper / f"f{number}").touch()
        return store.freeze(scratch)

    for number in range(4):
        image = grow(image, number)
    assert len(store.lowers(image)) == 5
    with pytest.raises(SandboxError, match="nested more than 256 deep"):
        grow(image, 4)
    assert disorder(store.root, set(os.listdir(store.root / "engines"))) == []
    store.close()


def test_many_children_start_at_once(tmp_path: Path, store: LayerStore) -> None:
    image, model = base(tmp_path, store)
    first = write(Mounted(store, image, model, tmp_path / "mnt"), "first")
    state = first.freeze()
    children: list[Mounted] = []
    try:
        for number in range(40):
            children.append(Mounted(store, state, first.model, tmp_path / f"m{number}"))
            write(children[-1], "first" if number % 2 else f"own{number}")
        for child in children:
            child.check()
    finally:
        for child in children:
            child.drop()
    store.discard(state)
    assert layers(store) == 1


@pytest.mark.parametrize("depth", [60, 300])
def test_tall_stacks_are_mounted_whatever_their_paths(tmp_path: Path, depth: int) -> None:
    """By names from their common directory, and beyond that one by one (Linux 6.7)."""
    place = tmp_path / ("long" * 20)
    place.mkdir()
    store = LayerStore(place / "store", max_depth=400)
    image, model = base(tmp_path, store)
    for number in range(depth):
        scratch = store.new_scratch(image)
        (scratch.upper / f"f{number}").touch()
        image = store.freeze(scratch)
    here = os.getcwd()
    mounted = Mounted(store, image, model, tmp_path / "mnt")
    try:
        assert sum(name.startswith("f") for name in os.listdir(tmp_path / "mnt")) == depth
        assert os.getcwd() == here
    finally:
        mounted.drop()
    store.close()


class Schedule:
    """A store under random use by two engines, against a model of every state."""

    def __init__(self, at: Path, seed: int) -> None:
        self.rng, self.at = random.Random(seed), at
        at.mkdir()
        depth = self.rng.randrange(1, 5)
        self.stores = [LayerStore(at / "store", max_depth=depth) for _ in range(2)]
        self.base, model = base(at, self.stores[0])
        self.states: list[tuple[LayerStore, SandboxImage, Model]] = [
            (store, self.base, model) for store in self.stores
        ]
        self.open: list[Mounted] = []
        self.mounts = 0

    def run(self) -> None:
        """Some steps; then everything is given back, and nothing is left."""
        steps = (self._fork, self._fork, self._change, self._change, self._freeze, self._freeze,
                 self._drop, self._discard, self._sweep)  # fmt: skip
        try:
            for _ in range(24):
                self.rng.choice(steps)()
        finally:
            for mounted in self.open:
                mounted.unmount()
        for mounted in self.open:
            mounted.store.drop(mounted.scratch)
        for store, image, model in self.states:
            mounted = Mounted(store, image, model, self.at / "last")
            try:
                mounted.check()
            finally:
                mounted.drop()
            store.discard(image)
        first = self.stores[0]
        assert disorder(first.root, self._engines()) == []
        assert layers(first) == 1
        assert first.sweep() == 0
        for store in self.stores:
            store.close()
        assert os.listdir(first.root / "engines") == []

    def _engines(self) -> set[str]:
        return set(os.listdir(self.stores[0].root / "engines"))

    def _fork(self) -> None:
        store, image, model = self.rng.choice(self.states)
        self.mounts += 1
        self.open.append(Mounted(store, image, model, self.at / f"m{self.mounts}"))
        self.open[-1].check()

    def _change(self) -> None:
        for mounted in self.open:
            if self.rng.random() < 0.6:
                mounted.change(self.rng)
                mounted.check()

    def _freeze(self) -> None:
        if self.open:
            mounted = self.open.pop(self.rng.randrange(len(self.open)))
            image = mounted.freeze()
            self.states.append((mounted.store, image, mounted.model))
            for store, other, model in self.states:
                if model.shown() != mounted.model.shown():
                    assert other.digest != image.digest
                    if self.rng.random() < 0.2:
                        assert store.content_digest(other) != store.content_digest(image)

    def _drop(self) -> None:
        if self.open:
            self.open.pop(self.rng.randrange(len(self.open))).drop()

    def _discard(self) -> None:
        store, image, _model = self.rng.choice(self.states)
        store.discard(image)
        if not image.pristine:
            self.states = [state for state in self.states if state[1].id != image.id]

    def _sweep(self) -> None:
        assert self.rng.choice(self.stores).sweep() == 0


def schedules(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        try:
            Schedule(tmp_path / f"s{seed}", seed).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


def test_random_schedules(tmp_path: Path) -> None:
    schedules(tmp_path, range(20))


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_a_thousand_random_schedules(tmp_path: Path) -> None:
    schedules(tmp_path, range(1000, 2000))
