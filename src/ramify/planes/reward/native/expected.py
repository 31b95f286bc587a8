"""Which tests there are, read from their source on our side; nothing of it runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from ramify.contracts.errors import ConfigError

_PATTERNS: Mapping[str, tuple[str, ...]] = {
    "pytest": ("test_*.py", "*_test.py"),
    "unittest": ("test*.py",),
}


def files_of_tests(tests: Path, runner: str) -> tuple[str, ...]:
    """The files of tests below a directory, in order."""
    return tuple(
        path.relative_to(tests).as_posix()
        for path in sorted(tests.rglob("*.py"))
        if any(fnmatchcase(path.name, pattern) for pattern in _PATTERNS[runner])
    )


def expected_tests(tests: Path, runner: str) -> tuple[str, ...]:
    """Ids of the tests below a directory, as `file.py::Class::test`, in order of their files.

    What is made while the tests run is not seen: parameters (an id stands for all of its cases),
    classes that a function makes, tests inherited from another file. Where that matters, the task
    lists its tests itself.

    Raises:
        ConfigError: a file that is no Python, or no tests at all.
    """
    found: list[str] = []
    for name in files_of_tests(tests, runner):
        path = tests / name
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise ConfigError(f"is not Python: {error}", file=str(path)) from None
        found += [f"{name}::{test}" for test in _tests(tree, runner)]
    if not found:
        raise ConfigError(
            f"holds no test that `{runner}` would find in a file named "
            f"{' or '.join(_PATTERNS[runner])}; list the tests as [ramify.tests] expected",
            file=str(tests),
        )
    return tuple(dict.fromkeys(found))


def _tests(tree: ast.Module, runner: str) -> Iterator[str]:
    classes: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
            yield from _tests_of_class(node, classes, runner)
        elif runner == "pytest" and (name := _test_name(node)):
            yield name


def _test_name(node: ast.stmt) -> str:
    """The name of a test function; empty for anything else."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    return node.name if node.name.startswith("test") else ""


def _tests_of_class(
    node: ast.ClassDef, classes: Mapping[str, ast.ClassDef], runner: str
) -> Iterator[str]:
    lineage = _lineage(node, classes)
    is_case = any(_is_case(base) for one in lineage for base in one.bases)
    if not is_case and (runner != "pytest" or not node.name.startswith("Test")):
        return
    # A class that pytest would have to give arguments to is none that it collects.
    made = (m for one in lineage for m in one.body if isinstance(m, ast.FunctionDef))
    if not is_case and any(method.name == "__init__" for method in made):
        return
    for one in lineage:
        for method in one.body:
            if name := _test_name(method):
                yield f"{node.name}::{name}"
    if runner == "pytest":
        for inner in node.body:
            if isinstance(inner, ast.ClassDef):
                for test in _tests_of_class(inner, classes, runner):
                    yield f"{node.name}::{test}"


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """A class and those of the same file that it inherits from."""
    found = [node]
    for one in found:
        for base in one.bases:
            if isinstance(base, ast.Name) and base.id in classes:
                parent = classes[base.id]
                if parent not in found:
                    found.append(parent)
    return found


def _is_case(base: ast.expr) -> bool:
    name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
    return str(name).endswith("TestCase")
