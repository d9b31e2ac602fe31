"""`DLLMCache`: prompt and response on intervals, and between them the tokens that changed most."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from erta_framework import Step
from erta_framework.errors import PolicyError
from erta_framework.session import Call
from erta_policies.shared import TokenRule, check_at_least


class DLLMCache(TokenRule):
    """Refreshes the prompt and the response on intervals of their own; between, a few tokens.

    Between refreshes it runs on the `ratio` of the response whose values are least similar to
    those held. A masked token that does not run keeps its logits, and may be decoded from them.

    Source: dLLM-Cache (arXiv 2506.06295; maomaocun/dLLM-cache at 17235bf). There, every layer
    chooses its own tokens by its own values; here one choice, by the values of the second layer,
    holds for all layers [ours]. It costs one layer on every position, which the work counts.

    Attributes:
        prompt_interval: K_p, steps from one refresh of the prompt to the next; 25 to 100 there.
        response_interval: K_r, the same of the response; 4 to 8 there.
        ratio: Part of the response that runs between its refreshes.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> DLLMCache(response_interval=4).ratio
        0.25
    """

    signals: ClassVar[tuple[str, ...]] = ("given", "value_similarity")
    needs: ClassVar[tuple[str, ...]] = ("kept_logits",)

    prompt_interval: int = 50
    response_interval: int = 7
    ratio: float = 0.25

    def __post_init__(self) -> None:
        check_at_least(
            self,
            1,
            prompt_interval=self.prompt_interval,
            response_interval=self.response_interval,
        )
        if not 0.0 < self.ratio <= 1.0:
            raise PolicyError(f"the ratio of DLLMCache is {self.ratio}, outside (0, 1]")

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The prompt, and the tokens of the response whose values changed least."""
        given = call.feature("given")
        reused = torch.zeros_like(given)
        if step.index % self.prompt_interval:
            reused = given
        if step.index % self.response_interval:
            reused = reused | (~given & ~self._find_changed(call, given))
        return reused

    def _find_changed(self, call: Call, given: Tensor) -> Tensor:
        similarity = call.feature("value_similarity").masked_fill(given, torch.inf)
        count = ((~given).sum(1) * self.ratio).floor().clamp(min=1)
        rank = similarity.argsort(dim=1, stable=True).argsort(1)
        return rank < count[:, None]

    def name_reason(self) -> str:
        """The part that runs."""
        return f"all but {math.ceil(self.ratio * 100)} % that changed most"
