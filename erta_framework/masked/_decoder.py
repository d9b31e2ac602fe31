"""`Decoder`: which masked tokens a step decodes, and to what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from erta_framework.errors import InputError

Order = Literal["confidence", "random", "left_to_right"]
ORDERS: tuple[Order, ...] = ("confidence", "random", "left_to_right")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Which masked tokens a step decodes, and to what.

    A token is drawn for every masked position of the block; those that come first in the order
    stay, the others are masked again. A configuration takes the order as the name of a decoder.

    To write another, subclass it as a dataclass, override `draw` or `choose`, and register the
    class under the entry-point group `erta_framework.decoders`. Its `repr` is in profiles.

    Attributes:
        order: `"confidence"` takes the tokens whose probability is highest (low-confidence
            remasking of LLaDA, arXiv 2502.09992); `"random"` follows an order that is drawn once a
            request; `"left_to_right"` goes by position.
        temperature: Of the Gumbel noise on the logits; 0 takes the most likely token.
        threshold: Decodes every token whose probability reaches it, and at least as many as the
            schedule asks for (Fast-dLLM, arXiv 2505.22618).
        edit_threshold: Replaces decoded tokens of the block where another token's probability
            exceeds it (LLaDA2's block refinement in diffusers).
        post_steps: Further steps of a block that has no masks, while tokens are still edited.
        remask: Decoded tokens of the block that each step masks again, those that were least
            probable when they were decoded; none in a block's last step.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> Decoder(order="random", temperature=1.0).is_order_known
        True
    """

    order: Order = "confidence"
    temperature: float = 0.0
    threshold: float | None = None
    edit_threshold: float | None = None
    post_steps: int = 16
    remask: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"the order is {self.order!r}; choose one of {', '.join(ORDERS)}")
        if not 0.0 <= self.temperature < float("inf"):
            raise InputError(f"the temperature is {self.temperature}, it must be at least 0")
        for name in ("threshold", "edit_threshold"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise InputError(f"{name} is {value}, it must lie in (0, 1]")
        if self.remask < 0 or self.post_steps < 0:
            raise InputError(
                f"remask is {self.remask} and post_steps {self.post_steps}; give at least 0"
            )

    @property
    def is_order_known(self) -> bool:
        """Whether the positions of a step are known before the network runs."""
        return self.order != "confidence" and self.threshold is None and not self.remask

    def draw(self, logits: Tensor, generators: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """A token for every position, and its probability, `[B, K]` each.

        Args:
            logits: `[B, K, V]`; the mask itself must have -inf.
            generators: One a sample, so that a sample does not depend on its neighbours.
        """
        # double, as LLaDA's sampler: rounded Gumbel noise is not fair; Apple's GPUs have none
        logits = logits.float() if logits.device.type == "mps" else logits.double()
        noisy = logits
        if self.temperature > 0:
            uniform = torch.stack(
                [torch.rand(logits.shape[1:], generator=g, dtype=torch.float64) for g in generators]
            ).to(logits)
            gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-30)))
            noisy = logits + self.temperature * gumbel
        tokens = noisy.argmax(-1)
        probability = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
        return tokens, probability.float()

    def choose(
        self, candidates: Tensor, count: Tensor, probability: Tensor, priority: Tensor
    ) -> Tensor:
        """Which candidates are decoded, `[B, K]`.

        Args:
            candidates: Masked positions with fresh logits, `[B, K]`.
            count: How many to decode at least, `[B]`.
            probability: Of the token that was drawn, `[B, K]`.
            priority: Of the position in an order that is known; the highest comes first, `[B, K]`.
        """
        score = probability if self.order == "confidence" else priority
        chosen = take_first(candidates, count, score)
        if self.threshold is not None:
            chosen = chosen | (candidates & (probability >= self.threshold))
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceDecoder(Decoder):
    """`Decoder` in the order of confidence: `decoder: confidence` of a configuration.

    Low-confidence remasking of LLaDA, arXiv 2502.09992.

    Example:
        >>> ConfidenceDecoder(threshold=0.9).order
        'confidence'
    """

    order: Order = field(default="confidence", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomDecoder(Decoder):
    """`Decoder` in an order that is drawn once a request: `decoder: random` of a configuration.

    Example:
        >>> RandomDecoder(temperature=0.7).is_order_known
        True
    """

    order: Order = field(default="random", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftToRightDecoder(Decoder):
    """`Decoder` by position: `decoder: left_to_right` of a configuration.

    Example:
        >>> LeftToRightDecoder().is_order_known
        True
    """

    order: Order = field(default="left_to_right", init=False)


def take_first(candidates: Tensor, count: Tensor, score: Tensor) -> Tensor:
    """The `count` `[B]` candidates of each row with the highest score, `[B, K]` booleans."""
    ordered = score.masked_fill(~candidates, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    rank = torch.empty_like(ordered).scatter_(
        1, ordered, torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
    )
    return candidates & (rank < count[:, None])
