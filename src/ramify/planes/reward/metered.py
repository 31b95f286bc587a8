"""A model whose calls are charged to whatever is being scored."""

from __future__ import annotations

from collections.abc import Sequence

from ramify.contracts.config import Sampling
from ramify.contracts.messages import Message, ToolSpec
from ramify.contracts.metering import charge
from ramify.contracts.model import Completion, Model


class MeteredModel:
    """Another model, each answer of which is charged (contracts/metering.py). Implements `Model`.

    Attributes:
        inner: that model.
    """

    def __init__(self, inner: Model) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """The model's name."""
        return self.inner.name

    async def sample(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        params: Sampling | None = None,
    ) -> Completion:
        """Sample one completion, and charge it. Raises what the model raises."""
        answer = await self.inner.sample(messages, tools, params)
        charge(answer.usage)
        return answer

    async def aclose(self) -> None:
        """Close the model."""
        await self.inner.aclose()


def metered(model: Model) -> Model:
    """The model with its calls charged, once however often this is asked for."""
    return model if isinstance(model, MeteredModel) else MeteredModel(model)


def same_model(one: Model | None, other: Model | None) -> bool:
    """Whether both are one model, metered or not."""
    return _bare(one) is _bare(other)


def _bare(model: Model | None) -> Model | None:
    return model.inner if isinstance(model, MeteredModel) else model
