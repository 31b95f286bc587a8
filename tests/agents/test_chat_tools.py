"""Tools: schemas from signatures, checked arguments, injection; the sandbox tools for real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError
from ramify.contracts.sandbox import SandboxSpec
from ramify.planes.agent.sandbox_tools import Box, sandbox_tools
from ramify.planes.agent.tools import Tool, ToolError, clipped
from ramify.planes.sandbox.local import LocalProvider


class Ledger:
    """Something injected."""

    def __init__(self) -> None:
        self.seen: list[Any] = []


async def book(
    ledger: Ledger,
    amount: Annotated[int, msgspec.Meta(ge=1)],
    to: Literal["a", "b"],
    notes: list[str] | None = None,
) -> str:
    """Book an amount.

    It is final.

    Args:
        amount: How much,
            in cents.
        to: Which account.

    Raises:
        ValueError: never.
    """
    ledger.seen.append((amount, to, notes))
    return "booked"


def test_the_schema_is_that_of_the_signature():
    spec = Tool.of(book, {Ledger: "ledger"}).spec
    assert (spec.name, spec.description) == ("book", "Book an amount.\n\nIt is final.")
    assert spec.parameters == {
        "type": "object",
        "properties": {
            "amount": {"type": "integer", "minimum": 1, "description": "How much, in cents."},
            "to": {"enum": ["a", "b"], "description": "Which account."},
            "notes": {
                "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
                "default": None,
            },
        },
        "required": ["amount", "to"],
        "additionalProperties": False,
    }


async def test_arguments_are_checked_and_values_injected():
    ledger, tool = Ledger(), Tool.of(book, {Ledger: "ledger"})
    values = {"ledger": ledger}
    assert await tool.run('{"amount": 3, "to": "b"}', values) == "booked"
    for wrong, says in {
        '{"amount": "3", "to": "b"}': r"Expected `int`, got `str` - at `\$.amount`",
        '{"amount": 0, "to": "b"}': "Expected `int` >= 1",
        '{"amount": 3, "to": "c"}': "Invalid enum value",
        '{"amount": 3}': "missing required field `to`",
        '{"amount": 3, "to": "a", "ledger": 1}': "unknown field `ledger`",
        '{"amount": 3,': "truncated",
        "[1]": "Expected `object`",
        "": "missing required field",
        '"\\ud800"': "invalid arguments",
    }.items():
        with pytest.raises(ToolError, match=says):
            await tool.run(wrong, values)
    assert ledger.seen == [(3, "b", None)]


@given(st.text(max_size=80))
async def test_any_arguments_are_fine_or_a_tool_error(text):
    tool = Tool.of(book, {Ledger: "ledger"})
    with pytest.raises(ToolError):
        await tool.run(text, {"ledger": Ledger()})


async def test_plain_functions_may_be_tools():
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert await Tool.of(add).run('{"a": 40}', {}) == "42"


def test_what_no_schema_can_say_is_refused():
    def untyped(x): ...
    def starred(*x: int): ...
    def odd(x: Ledger): ...

    for function, says in ((untyped, "no type"), (starred, "no schema"), (odd, "odd")):
        with pytest.raises(ConfigError, match=says):
            Tool.of(function)


@given(st.text(max_size=300), st.integers(10, 200), st.integers(0, 9))
def test_clipping_keeps_head_and_tail(text, limit, dropped):
    shown = clipped(text, limit, dropped)
    if len(text) <= limit and not dropped:
        assert shown == text
    else:
        assert (
            f"\n[... {max(0, len(text) - limit // 2 * 2) * (len(text) > limit) + dropped}" in shown
        )
        assert len(shown) <= limit + 60
        assert shown.startswith(text[: min(len(text), limit) // 2])
        assert shown.endswith(text[len(text) - min(len(text), limit) // 2 :])


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Box]:
    provider = LocalProvider()
    try:
        sandbox = await provider.create(SandboxSpec(host_root=True, workdir="/srv"))
        yield Box(sandbox, None, "/srv", 5.0, 1000)
    finally:
        await provider.aclose()


@pytest.mark.namespaces
async def test_the_sandbox_tools(box: Box):
    tools = sandbox_tools()

    async def use(name: str, **arguments: object) -> str:
        text = msgspec.json.encode(arguments).decode()
        try:
            return await tools[name].run(text, {"box": box})
        except ToolError as error:
            return f"Error: {error}"

    # write and read
    assert await use("write", path="a/b c.txt", content="é1\n2\n3") == "wrote 7 bytes to a/b c.txt"
    assert await use("read", path="a/b c.txt") == "é1\n2\n3"
    assert await use("read", path="/srv/a/b c.txt", offset=2, limit=1) == (
        "2\n[lines 2 to 2 of 3; go on with offset=3]"
    )
    assert await use("read", path="a/b c.txt", offset=9) == (
        "[nothing from line 9 on; the file has 3 lines]"
    )
    assert await use("read", path="-x") == "Error: -x: no such file"
    assert await use("read", path="/srv/a") == "Error: /srv/a: not a regular file"
    assert "Error: " in await use("write", path="/proc/nope/x", content="")
    assert await use("read", path="a\0b") == "Error: 'a\\x00b' is no path"
    # edit
    assert await use("edit", path="a/b c.txt", old="2", new="two") == "replaced 1 in a/b c.txt"
    assert await use("edit", path="a/b c.txt", old="\n", new=" ") == (
        "Error: a/b c.txt: `old` occurs 2 times; give more of its surroundings"
    )
    assert "replaced 2" in await use("edit", path="a/b c.txt", old="\n", new=" ", replace_all=True)
    assert await use("edit", path="a/b c.txt", old="4", new="") == (
        "Error: a/b c.txt: `old` does not occur in the file"
    )
    assert await use("bash", command="printf '\\377\\0=x' > raw; chmod 751 raw") == (
        "[no output, exit code 0]"
    )
    assert "replaced 1" in await use("edit", path="raw", old="=x", new="=y")
    assert await use("bash", command="od -An -c raw; stat -c %a raw") == (
        " 377  \\0   =   y\n751\n"
    )
    # bash
    assert await use("bash", command="echo out; echo err >&2; exit 3") == (
        "out\nerr\n[exit code 3]"
    )
    assert await use("bash", command="printf x; sleep 30", timeout_sec=0.2) == (
        "x\n[timed out after 0.2 s; the command was killed]"
    )
    long = await use("bash", command="seq 1000000")
    assert len(long) < 1100
    assert long.startswith("1\n2\n")
    assert long.endswith("999999\n1000000\n")
    assert "characters left out" in long
    assert "Error: " in await use("bash", command="ls", timeout_sec=0)
    assert "longer than 60000 bytes" in await use("bash", command="x" * 60_001)
    assert "60001 bytes" in await use("write", path="big", content="x" * 60_001)
    fifo = await use("bash", command="mkfifo f; ln -s /dev/zero z; echo ok")
    assert fifo == "ok\n"
    assert await use("read", path="f") == "Error: f: not a regular file"
    assert await use("edit", path="z", old="a", new="b") == "Error: z: not a regular file"
