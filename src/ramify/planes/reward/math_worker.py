"""A program: compares mathematical expressions, each in a process of its own.

It imports the library once and then forks for every comparison, so that a comparison which runs
wild costs nobody else more than a fork, and none sees what another left behind. It is run as a
file, without the package, with nothing of the caller's environment.

One JSON object per line in, `{"target", "answer", "cpu_sec", "wall_sec", "memory_mb"}`, and one
out for each: `{"target", "answer"}` (whether each could be read), `"equal"` (null: not known),
`"why"` and `"signal"` (what ended it, or 0). It ends with its standard input.
"""

from __future__ import annotations

import cmath
import ctypes
import gc
import json
import logging
import os
import re
import resource
import signal
import sys
import unicodedata
from collections.abc import Callable
from typing import Any, cast

from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
from sympy import Product, Sum, Symbol
from sympy import sqrt as _sqrt  # pyright: ignore[reportUnknownVariableType] (untyped)

Say = Callable[[dict[str, Any]], None]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CONFIG = LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=LatexNormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="last",
        equations=False,
    ),
)  # fmt: skip
_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "²": "^{2}", "³": "^{3}", "°": r"^{\circ}", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "±": r"\pm ", "θ": r"\theta ", "∈": r"\in ",
}  # fmt: skip
_SYMBOL = re.compile("|".join(map(re.escape, _SYMBOLS)))
_WARM = (
    ("x^2-1", "(x-1)(x+1)"), (r"\sin(2x)", r"2\sin x\cos x"), ("[0,1)", r"[0,1)\cup\{1\}"),
    ("y=2x+1", "2x-y=1"), (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix}1&3\end{bmatrix}"),
    (r"\{1,\sqrt{2}\}", "1,2^{1/2}"), ("x<3", "3>x+0"), ("0.5", r"50\%"), ("(1+i)^2", "2i"),
)  # fmt: skip
_UNIT = Symbol("i", real=False)
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def normalised(text: str) -> str:
    """The text as LaTeX that the library reads: no delimiters, no signs outside ASCII."""
    text = text.strip().rstrip(".").strip()
    for start, end in _DELIMITERS:
        if len(text) > len(start + end) and text.startswith(start) and text.endswith(end):
            text = text[len(start) : -len(end)].strip()
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = re.sub(r"√\s*\(?([0-9A-Za-z]+)\)?", r"\\sqrt{\1}", text)
    text = unicodedata.normalize("NFKC", text).replace("**", "^")
    text = re.sub(r"\\boxed\b|\\fbox\b", "", text).replace(r"\varnothing", r"\emptyset")
    text = re.sub(r"(?<=[0-9])i\b", " i", text)  # the library takes it for a variable otherwise
    text = re.sub(r"(?<![\\A-Za-z])sqrt\(([^()]{1,200})\)", r"\\sqrt{\1}", text)
    text = re.sub(
        r"(?<![\\A-Za-z])(pi|infty|theta|sin|cos|tan|log|ln|exp)(?![A-Za-z])", r"\\\1", text
    )
    return re.sub(r"\s+", " ", text).strip()


def read(text: str) -> list[Any]:
    """What the library makes of a text; empty where it can read nothing."""
    found = parse(  # pyright: ignore[reportUnknownVariableType] (a bare list)
        rf"\boxed{{{text}}}",
        [_CONFIG],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,  # type: ignore[arg-type] (None turns it off; the caller kills us)
    )
    return [_with_unit(expression) for expression in cast(list[Any], found)]


def _with_unit(expression: Any) -> Any:
    """The library reads the imaginary unit as a symbol that is not real, and leaves it at that."""
    if expression.has(Sum, Product) or _UNIT not in expression.free_symbols:
        return expression  # there it is an index
    return expression.subs(_UNIT, _sqrt(-1))


def compare(target: str, answer: str, say: Say) -> None:
    """Compare; `say` is told what is known, piece by piece."""
    left, right = normalised(target), normalised(answer)
    if left and left == right:
        say({"target": True, "answer": True, "equal": True})
        return
    wanted = read(left)
    if not wanted or not verify(wanted, wanted, timeout_seconds=None):
        say({"target": False, "why": "the target is no expression that can be evaluated"})
        return
    verify(wanted, read("0"), timeout_seconds=None)  # what is too much by itself shows here
    say({"target": True})
    found = read(right) if right else []
    if not found:
        say({"answer": False, "equal": False, "why": "the answer is no expression"})
        return
    say({"answer": True})
    equal = verify(wanted, found, timeout_seconds=None)
    say({"equal": equal and (near(wanted[0], found[0]) or "%" in left + right)})


def near(left: Any, right: Any) -> bool:
    """Whether two numbers differ by at most one in a million; True for what are no numbers.

    The library rounds decimals to six places, so 0.0000001 would be 0, and 0.0000002 as well.
    """
    if not all(getattr(one, "is_number", False) for one in (left, right)):
        return True
    try:
        a, b = complex(left), complex(right)
    except (TypeError, ValueError, OverflowError):  # no number after all, or too large for a float
        return True
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b)) or not all(map(cmath.isfinite, (a, b)))


def in_child(request: dict[str, Any]) -> dict[str, Any]:
    """Compare in a forked process under limits; says what it knew when it ended, and how."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.closerange(3, writer)  # the channel for replies is not its business
            os.closerange(writer + 1, 256)
            _limit(request)
            compare(request["target"], request["answer"], lambda known: _say(writer, known))
        except BaseException as error:  # whatever an expression can make the library raise
            _say(writer, {"why": f"{type(error).__name__} while it was evaluated"})
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read(65536)
    _, status = os.waitpid(pid, 0)
    known: dict[str, Any] = {"target": None, "answer": None, "equal": None, "why": ""}
    for line in said.splitlines():
        known.update(json.loads(line))
    return {**known, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0}


def _limit(request: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    memory = int(request["memory_mb"]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Both signals end the process by default, in the midst of C code as well.
    signal.setitimer(signal.ITIMER_PROF, request["cpu_sec"])
    signal.setitimer(signal.ITIMER_REAL, request["wall_sec"])


def _say(writer: int, known: dict[str, Any]) -> None:
    os.write(writer, json.dumps(known).encode() + b"\n")


def main() -> None:
    """Serve until standard input ends."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's business
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    for target, answer in _WARM:  # makes it load and build what comparisons need
        compare(target, answer, lambda known: None)
    gc.collect()
    gc.freeze()
    os.write(replies, b'{"ready": true}\n')
    for line in sys.stdin.buffer:
        os.write(replies, json.dumps(in_child(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
