"""The house rules of docs/decisions and DESIGN.md §1, held against the code as it stands."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
ROOT = SRC.parent

PLANES = ("sandbox", "agent", "environment", "reward", "model")
# room → rooms it may import, itself aside
MAY_IMPORT: dict[str, set[str]] = {
    "contracts": set(),
    "kernel": {"contracts"},
    "engine": {"contracts", "kernel"},
    **{f"planes.{plane}": {"contracts"} for plane in PLANES},
    "tasks": {"contracts"},
    "testing": {"contracts"},
    "compose": {"contracts", "tasks", *(f"planes.{plane}" for plane in PLANES)},
    "envs": {"contracts", "kernel", "engine", "compose"},
    "edges": {"contracts", "kernel", "engine", "envs"},
    "apps": {"contracts", "kernel", "engine", "envs", "compose"},
    "cli": {"contracts", "kernel", "engine", "envs", "edges", "apps", "compose", "tasks"},
    "": {"contracts", "kernel", "engine", "envs", "compose", "tasks", "planes.reward", "apps"},
}
# These run beside or inside a sandbox, without the package: they and whatever they import need the
# standard library only.
ALONE = re.compile(r"^planes/sandbox/(inside|packer|.*reaper|.*supervisor|.*spawner)\.py$")
MAX_FILE, MAX_FUNCTION, MAX_PROTOCOL = 500, 80, 8


def modules(src: Path) -> dict[str, Path]:
    """Module name (without the leading package) → file."""
    found = {}
    for path in sorted((src / "ramify").rglob("*.py")):
        parts = path.relative_to(src / "ramify").with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def room(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "planes":
        return ".".join(parts[:2]) if len(parts) > 1 else "contracts"
    return parts[0] if module else ""


def imports(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Own modules that a module imports (TYPE_CHECKING blocks count too), with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "ramify":
                    yield alias.name.partition(".")[2], node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ramify":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield (inner if inner in names else base), node


def local_statements(tree: ast.Module) -> set[ast.stmt]:
    """Statements inside functions."""
    inside: set[ast.stmt] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside.update(n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node)
    return inside


def problems(src: Path) -> list[str]:
    """Everything in a source tree that breaks a rule, one line each."""
    files = modules(src)
    trees = {name: ast.parse(path.read_text()) for name, path in files.items()}
    graph: dict[str, set[str]] = {name: set() for name in files}
    found: list[str] = []
    for name, tree in trees.items():
        path = files[name].relative_to(src / "ramify").as_posix()
        local = local_statements(tree)
        for target, statement in imports(tree, set(files)):
            if target != name:
                graph[name].add(target)
            allowed = MAY_IMPORT.get(room(name), set()) | {room(name)}
            if room(name) not in MAY_IMPORT:
                found.append(f"{path}: the room {room(name)!r} is not in the house")
            elif room(target) not in allowed:
                found.append(f"{path}: {room(name)} imports {target}, against the arrows")
            if statement in local and name != "compose":
                found.append(f"{path}: imports {target} inside a function")
        found += [f"{path}: {line}" for line in shape(files[name], tree)]
        found += [f"{path}: {line}" for line in dead_names(files[name].read_text(), tree)]
        if room(name) != "testing":
            found += [f"{path}: {line}" for line in late_decoders(tree)]
        if {"utils", "common", "helpers", "misc"} & set(Path(path).with_suffix("").parts):
            found.append(f"{path}: a room is named for what it holds")
        if re.search(r"_v\d+", path):
            found.append(f"{path}: one version of the code")
    found += [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(graph)]
    return found + list(not_alone(src, files, trees, graph))


def not_alone(
    src: Path, files: dict[str, Path], trees: dict[str, ast.Module], graph: dict[str, set[str]]
) -> Iterator[str]:
    """Modules shipped into sandboxes (and what they import) that need more than the stdlib."""
    shipped = {n for n, p in files.items() if ALONE.match(p.relative_to(src / "ramify").as_posix())}
    pending = list(shipped)
    while pending:
        for target in graph[pending.pop()] - shipped:
            shipped.add(target)
            pending.append(target)
    for name in sorted(shipped):
        if files[name].name != "__init__.py" and room(name) != "planes.sandbox":
            yield f"{name}: a program that runs alone in a sandbox imports it"
        for node in ast.walk(trees[name]):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and files[name].name != "__init__.py":
                modules_named = (
                    [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                for module in modules_named:
                    top = (module or "").split(".")[0]
                    if top != "ramify" and top not in sys.stdlib_module_names:
                        yield f"{name}: runs alone in a sandbox, but imports {module}"


def shape(path: Path, tree: ast.Module) -> Iterator[str]:
    """Sizes of files, functions and Protocols."""
    lines = len(path.read_text().splitlines())
    if lines > MAX_FILE:
        yield f"{lines} lines; a file a reader can hold in mind has at most {MAX_FILE}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION:
                yield f"{node.name}() has {length} lines, at most {MAX_FUNCTION}"
        if isinstance(node, ast.ClassDef) and "Protocol" in {
            b.id if isinstance(b, ast.Name) else getattr(getattr(b, "value", b), "id", "")
            for b in node.bases
        }:
            yield from protocol(node)


def late_decoders(tree: ast.Module) -> Iterator[str]:
    """Typed decoding without a decoder made at import.

    msgspec 0.22 works out a Struct type when it first decodes one; two threads that do so at once
    crash the process. `json.Decoder` of a type known at import does it before there are threads.
    """
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "msgspec.json.decode"):
            continue
        for keyword in node.keywords:
            if keyword.arg == "type" and isinstance(keyword.value, ast.Name):
                yield f"decodes {keyword.value.id}: make a msgspec.json.Decoder of it at import"


def dead_names(text: str, tree: ast.Module) -> Iterator[str]:
    """Private names of a module that nothing in it mentions again."""
    words = Counter(re.findall(r"\w+", text))
    for name, _ in defined(tree):
        if re.match(r"_[^_]", name) and words[name] < 2:
            yield f"{name} is private, and nothing here uses it"


def defined(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr]]]:
    """Functions, classes and variables at the top level of a module, with their decorators."""
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.decorator_list
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, []
            case _:
                pass


def protocol(node: ast.ClassDef) -> Iterator[str]:
    methods = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    counted = [
        m for m in methods
        if not any(isinstance(d, ast.Name) and d.id == "property" for d in m.decorator_list)
    ]  # fmt: skip
    if len(counted) > MAX_PROTOCOL:
        yield f"Protocol {node.name} has {len(counted)} methods, at most {MAX_PROTOCOL}"
    for method in methods:
        if method.args.kwarg is not None:
            yield f"Protocol {node.name}.{method.name} takes **{method.args.kwarg.arg}"


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            component = [stack.pop()]
            while component[-1] != name:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def public_names(src: Path) -> dict[str, list[str]]:
    """Public functions, classes and variables → modules that define them (contracts aside).

    Contracts are what others build on; they are public whether or not we call them ourselves.
    """
    found: dict[str, list[str]] = {}
    for name, path in modules(src).items():
        if room(name) in ("contracts", "testing"):
            continue
        for public, decorators in defined(ast.parse(path.read_text())):
            if not (public.startswith("_") or decorators and room(name) == "cli"):
                found.setdefault(public, []).append(name)
    return found


def unused(src: Path, others: list[Path]) -> list[str]:
    """Public names that nothing but their definition (and tests) mentions."""
    words: Counter[str] = Counter()
    for path in [*modules(src).values(), *others]:
        words.update(re.findall(r"\w+", path.read_text()))
    result = []
    for name, owners in public_names(src).items():
        if words[name] <= len(owners):
            result.append(f"{owners[0]}: {name} is public, but nothing outside the tests uses it")
    return result


def test_the_house_stands() -> None:
    assert problems(SRC) == []


def test_every_public_name_is_used() -> None:
    others = [
        *(ROOT / "benchmarks").glob("*.py"),
        *(ROOT / "examples").glob("*.py"),
        ROOT / "pyproject.toml",
        ROOT / "dev" / "pod",  # writes a module
    ]
    assert unused(SRC, others) == []


BROKEN = {
    "kernel imports engine": ("kernel/a.py", "from ramify.engine.b import x", "against the arrows"),
    "plane imports plane": ("planes/agent/a.py", "import ramify.planes.sandbox.b", "arrows"),
    "plane imports kernel": ("planes/reward/a.py", "from ramify.kernel import b", "arrows"),
    "contracts import tasks": ("contracts/a.py", "from ramify.tasks import b", "arrows"),
    "local import": ("engine/a.py", "def f():\n    from ramify.contracts import b", "inside a"),
    "unknown room": ("helpers2/a.py", "from ramify.contracts import b", "not in the house"),
    "utils": ("engine/utils.py", "", "named for what it holds"),
    "version two": ("engine/store_v2.py", "", "one version"),
    "long file": ("engine/a.py", "x = 1\n" * 501, "501 lines"),
    "long function": ("engine/a.py", "def f():\n" + "    x = 1\n" * 80, "81 lines"),
    "fat protocol": (
        "contracts/a.py",
        "class P(Protocol):\n" + "".join(f"    def m{i}(self): ...\n" for i in range(9)),
        "9 methods",
    ),
    "kwargs protocol": (
        "contracts/a.py",
        "class P(Protocol):\n    def m(self, **kwargs: Any): ...\n",
        r"takes \*\*kwargs",
    ),
    "dead constant": ("engine/a.py", "_A = 1\n", "_A is private, and nothing here uses"),
    "dead function": ("engine/a.py", "def _f(): ...\n", "_f is private"),
    "late decoder": (
        "engine/a.py",
        "import msgspec\ndef f(raw):\n    return msgspec.json.decode(raw, type=Record)",
        "decodes Record",
    ),
    "supervisor is not alone": (
        "planes/sandbox/inside.py",
        "from ramify.contracts import b",
        "runs alone in a sandbox imports it",
    ),
    "supervisor needs a library": (
        "planes/sandbox/local/supervisor.py",
        "import msgspec",
        "runs alone in a sandbox, but imports msgspec",
    ),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda name: name.replace(" ", "-"))
def test_a_rule_broken_on_purpose_is_found(case: str, tmp_path: Path) -> None:
    path, text, message = BROKEN[case]
    for name in ("contracts/b.py", "engine/b.py", "tasks/b.py", "kernel/b.py"):
        target = tmp_path / "ramify" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("x = 1\n")
    target = tmp_path / "ramify" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    assert any(re.search(message, line) for line in problems(tmp_path)), problems(tmp_path)


def test_an_import_cycle_is_found(tmp_path: Path) -> None:
    (tmp_path / "ramify/engine").mkdir(parents=True)
    (tmp_path / "ramify/engine/a.py").write_text("from ramify.engine import b")
    (tmp_path / "ramify/engine/b.py").write_text("from ramify.engine.a import x")
    assert any("cycle: engine.a -> engine.b" in line for line in problems(tmp_path))


def test_an_unused_public_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "ramify/engine").mkdir(parents=True)
    (tmp_path / "ramify/engine/a.py").write_text(
        textwrap.dedent("""
        def used(): ...
        def lonely(): used()
        """)
    )
    assert unused(tmp_path, []) == [
        "engine.a: lonely is public, but nothing outside the tests uses it"
    ]
