"""Mathematical answers: symbolic equivalence, decided in a process that can be killed."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import Any

from ramify.contracts.context import Context
from ramify.contracts.errors import ConfigError, InfraError, RewardFailedError, UnsupportedError
from ramify.contracts.reward import RewardEvent, VerifyResult
from ramify.contracts.tree import RolloutNode
from ramify.planes.reward.arguments import Scene
from ramify.planes.reward.calling import Caller
from ramify.planes.reward.math_pool import Comparison, MathPool
from ramify.planes.reward.parsers.base import Parser
from ramify.planes.reward.parsers.boxed import extract_boxed_answer
from ramify.planes.reward.results import HOST

_MAX_TEXT = 2000
_PATIENCE_SEC = 600.0


class MathReward:
    r"""1 where the answer is equivalent to the task's target, else 0. Needs `ramify[math]`.

    A Reward by itself, and a part of a Rubric: `Rubric([MathReward()])`. Both texts are LaTeX, or
    plain as in `1/2` and `sqrt(2)`; the target is the task's, a text or a number.

    What cannot be decided:

    - no answer, and an answer that is no expression, too long, or takes more than `cpu_sec` or
      `memory_mb` to evaluate (`9^{9^{9^9}}`) is worth 0, since who writes it must not escape a low
      score; `details["why"]` says so. That holds only once the target has been read and evaluated
      by itself within the same limits;
    - else, and where the machine fails, it is an error and never 0.

    Decimals count as equal to within one in a million. Units are left aside, and a percentage is
    equal to the bare number. An answer that merely restates the problem (`17 \cdot 23` for 391) is
    equivalent; say in the prompt, or by a further function, what form is wanted.

    Args:
        parser: finds the answer in what the agent said; by default the last `\boxed{...}`.
        cpu_sec: seconds of processor time for one comparison; twelve times that on the clock.
        memory_mb: address space for one comparison.
        workers: comparisons at once.

    Raises:
        UnsupportedError: the library is not installed.
        ConfigError: a number out of range.
    """

    name = "math"
    timeout_sec = _PATIENCE_SEC
    """In a Rubric: waiting for a worker counts, and each comparison has its own limits."""

    def __init__(
        self,
        parser: Parser | None = None,
        *,
        cpu_sec: float = 5.0,
        memory_mb: int = 1024,
        workers: int = 2,
    ) -> None:
        if find_spec("math_verify") is None:
            raise UnsupportedError(
                "MathReward needs the library math-verify; install it: pip install 'ramify[math]'"
            )
        if not cpu_sec > 0 or memory_mb < 256 or workers < 1:
            raise ConfigError("MathReward needs cpu_sec > 0, memory_mb >= 256 and workers >= 1")
        self._parser = parser or Parser(extract_boxed_answer)
        self._pool = MathPool(cpu_sec, memory_mb)
        self._caller = Caller(workers)

    async def score(self, node: RolloutNode, ctx: Context) -> VerifyResult:
        """Compare the answer in what the agent said with the task's target.

        Raises: RewardFailedError (the target cannot be read or evaluated), InfraError.
        """
        target: Any = ctx.task.target
        if target is None or isinstance(target, bool) or not isinstance(target, str | int | float):
            raise RewardFailedError(
                f"{ctx.task.task_id} has no target that is a text or a number, so nothing can be "
                "compared with it"
            )
        answer: object = self._parser.parse_answer(Scene(node, ctx).value("completion"))
        if answer is None:
            return _result(False, None, "the agent gave no answer")
        equal, why = await self.compare(str(target), str(answer))
        return _result(equal, str(answer), why)

    async def compare(self, target: str, answer: str) -> tuple[bool, str]:
        """Whether an answer is equivalent to a target, and why it is not, where that is known.

        Raises: RewardFailedError, InfraError.
        """
        if len(target) > _MAX_TEXT:
            raise RewardFailedError(f"the target has more than {_MAX_TEXT} characters")
        if len(answer) > _MAX_TEXT:
            return False, f"the answer has more than {_MAX_TEXT} characters"
        returned = await self._caller.call(
            lambda: self._pool.compare(target, answer), False, _PATIENCE_SEC
        )
        if returned.raised is not None:
            if isinstance(returned.raised, InfraError):
                raise returned.raised
            raise InfraError(f"the comparison failed: {returned.raised}") from returned.raised
        return _decided(returned.value, target)

    def close(self) -> None:
        """End the workers. They end with this object in any case."""
        self._pool.close()


def _decided(said: Comparison, target: str) -> tuple[bool, str]:
    if said.signal in (signal.SIGALRM, signal.SIGKILL):
        raise InfraError(
            "a comparison got too little of the processor, or was killed; try again on a machine "
            "that is less busy"
        )
    if not said.target:
        limits = "it takes too much to evaluate" if said.signal else said.why
        raise RewardFailedError(f"the target {target[:200]!r} cannot be used: {limits}")
    if said.equal is None:
        return False, said.why or "the answer takes too much to evaluate"
    return said.equal, said.why


def _result(equal: bool, answer: str | None, why: str) -> VerifyResult:
    details = {"answer": answer, "why": why}
    return VerifyResult(
        reward=float(equal),
        events=(RewardEvent(MathReward.name, float(equal)),),
        grader_isolation=HOST,
        details={key: value for key, value in details.items() if value},
    )
