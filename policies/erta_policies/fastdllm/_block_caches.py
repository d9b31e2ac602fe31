"""`FastDLLMPrefix` and `FastDLLMDual`: keys and values of other blocks, until the block ends."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from erta_framework import Step
from erta_framework.session import Call
from erta_policies.shared import TokenRule


class FastDLLMPrefix(TokenRule):
    """Reuses all before the block that is decoded; a new block begins with a full run.

    Source: Fast-dLLM, prefix cache (arXiv 2505.22618; NVlabs/Fast-dLLM at 24cc59e). Its parallel
    decoding is `Decoder(threshold=0.9)`.

    Example:
        >>> FastDLLMPrefix().name
        'fast_dllm_prefix'
    """

    signals: ClassVar[tuple[str, ...]] = ("in_block", "block_step")

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The positions before the block."""
        begun = call.feature("in_block").int().cummax(1).values > 0
        return ~begun & (call.feature("block_step") > 0)[:, None]

    def name_reason(self) -> str:
        """What is reused."""
        return "before the block"


class FastDLLMDual(TokenRule):
    """Reuses all but the block that is decoded; a new block begins with a full run.

    Source: Fast-dLLM, dual cache (arXiv 2505.22618; NVlabs/Fast-dLLM at 24cc59e).

    Example:
        >>> FastDLLMDual().name
        'fast_dllm_dual'
    """

    signals: ClassVar[tuple[str, ...]] = ("in_block", "block_step")

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The positions outside the block."""
        return ~call.feature("in_block") & (call.feature("block_step") > 0)[:, None]

    def name_reason(self) -> str:
        """What is reused."""
        return "outside the block"
