"""Signals that policies may ask for by name beside the latents, such as `signal:prompt`.

A policy declares `traits = Traits(requires=frozenset({"signal:prompt"}))` and reads
`call.feature("prompt")`. The own loop offers the text embeddings, and whatever its network offers
by a method `signals`; a pipeline offers those of its network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

PREFIX = "signal:"
PROMPT = "prompt"
"""Text embeddings of the call, `[B, tokens, D]`, padding included."""
PROMPT_MASK = "prompt_mask"
"""Which of them hold text, `[B, tokens]` booleans."""
AHEAD = ":ahead"
"""Ends the name of a signal that depends on the timestep alone: its value at every step,
`[T, ...]`, known before the first step; `[0]` where the driver finds that it cannot know them."""
TEXT = frozenset({PREFIX + PROMPT, PREFIX + PROMPT_MASK})

NetworkSignal = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A signal of a network call from latents `[B, C, ...]`, times `[B]` and condition `[B, ...]`."""


@runtime_checkable
class OffersSignals(Protocol):
    """A network of the own loop that offers signals, by name without prefix."""

    def signals(self) -> Mapping[str, NetworkSignal]: ...


def find_signals(network: object) -> Mapping[str, NetworkSignal]:
    """The signals of a network of the own loop; none if it offers none."""
    return network.signals() if isinstance(network, OffersSignals) else {}


def as_tokens(condition: Tensor) -> Tensor:
    """A condition as text embeddings `[B, tokens, D]`; `[B, D]` is one token."""
    return condition.unsqueeze(1) if condition.ndim == 2 else condition.flatten(2)


def find_text_tokens(condition: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which tokens hold text, `[B, tokens]`: those of the mask, else those that are not all zero.

    Padding is zero where a pipeline cuts its embeddings to the length of the text and fills them
    up again, as Wan's does.

    Example:
        >>> find_text_tokens(torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]))
        tensor([[ True, False]])
    """
    if mask is not None:
        # additive masks are 0 where there is text
        return mask >= 0 if mask.is_floating_point() and bool((mask < 0).any()) else mask > 0
    return as_tokens(condition).abs().amax(dim=-1) > 0
