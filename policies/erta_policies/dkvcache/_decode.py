"""`DKVCacheDecode`: keys and values of decoded tokens, some steps after they were decoded."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from erta_framework import Step
from erta_framework.session import Call
from erta_policies.shared import Restart, TokenRule, check_at_least, find_full


class DKVCacheDecode(TokenRule):
    """Reuses the keys and values of tokens that were decoded `delay` steps before the last one.

    The keys and values of a token change most when it is decoded. With a delay of 1 they are
    taken one step later, from the token itself; with 0 they are those of the mask that stood there.
    Step i runs on all positions but `A_{i-1-delay}`, those that were known by then.

    Source: dKV-Cache-Decode (arXiv 2505.15781; horseee/dKV-Cache at 49a76fc). The paper has a
    delay of 1, and 0 as an ablation; more is ours. Steps 0 and 1 of each block run on every
    position, as in its code for LLaDA.

    Attributes:
        delay: d; 0 reuses at once.
        refresh: Steps from one run on every position to the next; None never. The paper has 8 for
            LLaDA and 4 for Dream.
        first: Steps at the start that run on every position.
        restart: What steps are counted from: each `"block"`, as in the code for LLaDA, or the
            `"request"`, as in that for Dream.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> DKVCacheDecode(delay=2, refresh=None)
        DKVCacheDecode(delay=2, refresh=None, first=2, restart='block')
    """

    signals: ClassVar[tuple[str, ...]] = ("known_for", "block_step")

    delay: int = 1
    refresh: int | None = 8
    first: int = 2
    restart: Restart = "block"

    def __post_init__(self) -> None:
        check_at_least(self, 0, delay=self.delay, first=self.first)
        check_at_least(self, 1, refresh=self.refresh)

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """Tokens that have been known for more than `delay` steps."""
        full = find_full(step, call, refresh=self.refresh, first=self.first, restart=self.restart)
        return (call.feature("known_for") > self.delay) & ~full[:, None]

    def name_reason(self) -> str:
        """The delay."""
        return f"known for more than {self.delay} steps"
