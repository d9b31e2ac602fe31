"""`DKVCachePrefill` and `DKVCachePD`: the prompt is run once."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from erta_framework import Step
from erta_framework.session import Call
from erta_policies.dkvcache._decode import DKVCacheDecode
from erta_policies.shared import Restart, TokenRule


class DKVCachePrefill(TokenRule):
    """Keeps the prompt's keys and values of the first step for good; all else runs.

    Whatever stands there from the start counts as prompt: padding and given parts of the answer.

    Source: dKV-Cache-Prefill (arXiv 2505.15781), published for Dream.

    Example:
        >>> DKVCachePrefill().name
        'dkv_cache_prefill'
    """

    signals: ClassVar[tuple[str, ...]] = ("given",)

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The positions that are never decoded."""
        return call.feature("given")

    def name_reason(self) -> str:
        """What is reused."""
        return "prompt"


class DKVCachePD(DKVCacheDecode):
    """`DKVCachePrefill` for the prompt, `DKVCacheDecode` for what is decoded.

    A refresh leaves the prompt alone.

    Source: dKV-Cache-PD (arXiv 2505.15781), published for Dream, with a refresh of 4. Its code
    keeps the prompt from step 0.

    Attributes:
        delay: As in `DKVCacheDecode`.
        refresh: Steps from one run on all but the prompt to the next; None never.
        first: Steps at the start that run on every position but, after step 0, the prompt.
        restart: What steps are counted from.

    Example:
        >>> DKVCachePD(refresh=16).first
        1
    """

    signals: ClassVar[tuple[str, ...]] = ("known_for", "block_step", "given")

    refresh: int | None = 4
    first: int = 1
    restart: Restart = "request"

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """The prompt, and tokens that have been known for more than `delay` steps."""
        return super().choose_reused(step, call) | call.feature("given")
