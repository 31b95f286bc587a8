"""A language model as a judge: it gives marks, and nothing that it reads can give them for it."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from weakref import WeakValueDictionary

import msgspec

from ramify.contracts.config import Sampling
from ramify.contracts.errors import (
    ConfigError,
    InvalidRewardError,
    LimitExceededError,
    ModelError,
    RewardFailedError,
    UsageError,
)
from ramify.contracts.messages import Message, Usage
from ramify.contracts.model import Completion, Model
from ramify.planes.reward.judge_cache import VerdictCache
from ramify.planes.reward.judge_fence import plain
from ramify.planes.reward.judge_prompt import (
    PROMPT_EDITION,
    Mark,
    Question,
    UnusableVerdictError,
    read_answer,
    write_messages,
)
from ramify.planes.reward.judge_scale import Criterion, Scale, criteria_of
from ramify.planes.reward.judge_verdict import Combine, Verdict, first_failure, united
from ramify.planes.reward.metered import metered, same_model

_MAX_REASON = 2000
_NOTHING = "(nothing)"


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked.

    Attributes:
        votes: how often, independently of each other.
        combine: how the votes become one.
        sampling: of the model; the same answer to the same question, by default.
        reasks: how often again after an answer that cannot be used.
        limit: characters of each part of the material that are shown.
        timeout_sec: seconds of one call.

    Raises:
        ConfigError: a number that is too small.
    """

    votes: int = 1
    combine: Combine = "median"
    sampling: Sampling = Sampling(temperature=0.0)
    reasks: int = 2
    limit: int = 24_000
    timeout_sec: float = 300.0

    def __post_init__(self) -> None:
        if self.votes < 1 or self.reasks < 0 or self.limit < 100 or not self.timeout_sec > 0:
            raise ConfigError(
                "a judge needs votes of 1 or more, reasks of 0 or more, a limit of 100 or more and "
                "a timeout_sec above 0"
            )


class Judge:
    """Asks a model for marks. Implements `Assessor`.

    The material is shown between lines with a mark that is new for every request and that nobody
    can guess, each line of it behind a bar, with everything spelled out that could be taken for
    something else (judge_fence.py). The answer must be JSON of one schema, with a nonce that is new
    for every request: an answer that was copied from the material does not have it.

    What cannot be used is asked again, and is an error after that. It is the judge's
    (RewardFailedError) unless the same judge has no trouble with an empty material: then the
    material keeps it from judging (InvalidRewardError), so that this never pays. No model is proof
    against persuasion; calibrate the judge, or ask several.

    Args:
        model: who is asked; another endpoint than the policy's.
        criteria: what for; a text is one question.
        name: what it is called.
        scale: the marks it may give.
        about: what it is to know of the material beforehand; trusted, it is part of the prompt.
        asking: how it is asked.
        cache: where verdicts are kept; one that is kept costs no call.
        endpoint: what tells this model from another of the same name, for the cache; its URL.
        may_be_policy: the policy may judge itself.
        secret: makes marks and nonces; each must be new and beyond guessing.

    Raises:
        ConfigError: criteria that do not fit together.
    """

    def __init__(
        self,
        model: Model,
        criteria: str | Sequence[Criterion],
        *,
        name: str = "judge",
        scale: Scale | None = None,
        about: str = "",
        asking: Asking | None = None,
        cache: VerdictCache | None = None,
        endpoint: str = "",
        may_be_policy: bool = False,
        secret: Callable[[], str] = lambda: secrets.token_hex(12),
    ) -> None:
        self._model, self._name = metered(model), name
        self._question = Question(criteria_of(criteria), scale or Scale(), about)
        self._asking, self._cache, self._endpoint = asking or Asking(), cache, endpoint
        self._may_be_policy, self._secret = may_be_policy, secret
        self._used = Usage()
        self._turns = WeakValueDictionary[str, asyncio.Lock]()

    @property
    def name(self) -> str:
        """What it is called."""
        return self._name

    @property
    def used(self) -> Usage:
        """What all its calls cost so far, those without a usable answer included."""
        return self._used

    def asks(self, model: Model | None) -> bool:
        """Whether it would ask this very model, and nobody said that it may."""
        return same_model(model, self._model) and not self._may_be_policy

    async def assess(self, material: Mapping[str, str]) -> Verdict:
        """Judge some material: name of a part (ours) → its text (anybody's).

        Raises: RewardFailedError, InvalidRewardError (`malformed`), UsageError (no material, or a
        part's name that is no word).
        """
        if not material or not all(part.isidentifier() for part in material):
            raise UsageError(f"a judge is shown parts by name, not {list(material)}")
        if self._cache is None:
            return await self._asked(material)
        key = self._key(material)
        # Siblings often say the same at the same time: whoever comes second waits for the first.
        async with self._turns.setdefault(key, asyncio.Lock()):
            if (kept := await self._cache.get(key)) is not None:
                return msgspec.structs.replace(kept, judge=self._name, calls=0, usage=Usage())
            verdict = await self._asked(material)
            await self._cache.put(key, verdict)
            return verdict

    async def _asked(self, material: Mapping[str, str]) -> Verdict:
        if self._asking.votes == 1:
            return await self._voice(material)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(self._vote(material)) for _ in range(self._asking.votes)]
        voices = first_failure([task.result() for task in asked])
        return united(voices, self._asking.combine, self._name)

    async def _vote(self, material: Mapping[str, str]) -> Verdict | Exception:
        """One vote, or why there is none: an error in a group would hide behind another type."""
        try:
            return await self._voice(material)
        except (RewardFailedError, InvalidRewardError) as error:
            return error

    async def _voice(self, material: Mapping[str, str]) -> Verdict:
        found = await self._marks(material)
        if isinstance(found, Verdict):
            return found
        empty = dict.fromkeys(material, _NOTHING)
        if isinstance(await self._marks(empty), Verdict):
            raise InvalidRewardError(
                "malformed",
                f"{self._name} gives no usable verdict on this ({found}), while it does on an "
                "empty one",
            )
        raise RewardFailedError(
            f"{self._name} ({self._model.name}) gives no usable verdict: {found}"
        )

    async def _marks(self, material: Mapping[str, str]) -> Verdict | str:
        """A verdict, or what was wrong with the last of the answers."""
        why, usage = "", Usage()
        for attempt in range(1 + self._asking.reasks):
            mark, nonce = self._secret(), self._secret()
            messages, cut = write_messages(
                self._question, material, mark=mark, nonce=nonce, limit=self._asking.limit, why=why
            )
            answer = await self._call(messages)
            usage += answer.usage
            try:
                if answer.finish_reason == "length":
                    raise UnusableVerdictError("it was cut off at the limit of tokens")
                marks = read_answer(answer.message.content, self._question, nonce)
            except UnusableVerdictError as error:
                why = str(error)
                continue
            return self._verdict(marks, usage, attempt + 1, cut)
        return why

    async def _call(self, messages: Sequence[Message]) -> Completion:
        try:
            async with asyncio.timeout(self._asking.timeout_sec):
                answer = await self._model.sample(messages, (), self._asking.sampling)
        except TimeoutError as error:
            raise RewardFailedError(
                f"{self._name} ({self._model.name}) did not answer within "
                f"{self._asking.timeout_sec:g} s"
            ) from error
        except LimitExceededError as error:
            raise RewardFailedError(
                f"{self._name} ({self._model.name}): {error}; show it less (Asking.limit)"
            ) from error
        except ModelError as error:
            raise RewardFailedError(f"{self._name} ({self._model.name}): {error}") from error
        self._used += answer.usage
        return answer

    def _verdict(
        self, marks: Sequence[Mark], usage: Usage, calls: int, cut: dict[str, int]
    ) -> Verdict:
        scale, weights = self._question.scale, [each.weight for each in self._question.criteria]
        shares = [scale.share(each.mark) for each in marks]
        return Verdict(
            score=fmean(shares, weights),
            criteria={each.criterion: share for each, share in zip(marks, shares, strict=True)},
            reasons={each.criterion: plain(each.reason)[:_MAX_REASON] for each in marks},
            judge=self._name,
            calls=calls,
            usage=usage,
            cut=cut,
        )

    def _key(self, material: Mapping[str, str]) -> str:
        """Identifies everything that a verdict depends on."""
        asking, question = self._asking, self._question
        facts = [
            PROMPT_EDITION,
            self._model.name,
            self._endpoint,
            [asking.votes, asking.combine, asking.limit, msgspec.to_builtins(asking.sampling)],
            [question.about, question.scale.low, question.scale.high],
            sorted(question.scale.meanings.items()),
            [[each.name, each.description, each.weight] for each in question.criteria],
            list(material.items()),
        ]
        # Surrogates, which no JSON can hold, are texts that an agent may have written.
        data = repr(facts).encode(errors="backslashreplace")
        return hashlib.blake2b(data, digest_size=32).hexdigest()
