"""`DKVCacheGreedy`: only what is decoded now, what was decoded last, and a window run."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from erta_framework import Step
from erta_framework.errors import PolicyError
from erta_framework.session import Call
from erta_policies.shared import Restart, TokenRule, check_at_least, find_full

Centre = Literal["next", "previous"]


class DKVCacheGreedy(TokenRule):
    """Runs on the positions that are decoded now, those decoded last, and masks around them.

    The cost of a step does not depend on the length of the sequence. It needs an order of decoding
    that is known before the network runs: random, or left to right.

    Source: dKV-Cache-Greedy (arXiv 2505.15781; horseee/dKV-Cache at 49a76fc). The window lies
    around the tokens that are decoded next, as in the code; the text of the paper found those of
    the previous step better.

    Attributes:
        refresh: Steps from one run on every position to the next; None never.
        window: Masked neighbours of each token, alternately to its left and right; where one side
            has no more, the other gives them.
        centre: Around which tokens: `"next"` or `"previous"`.
        restart: What steps are counted from.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> DKVCacheGreedy().window
        4
    """

    signals: ClassVar[tuple[str, ...]] = ("known_for", "block_step", "masked", "next")

    refresh: int | None = 2
    window: int = 4
    centre: Centre = "next"
    restart: Restart = "block"

    def __post_init__(self) -> None:
        check_at_least(self, 1, refresh=self.refresh)
        check_at_least(self, 0, window=self.window)
        if self.centre not in ("next", "previous"):
            raise PolicyError(f"centre is {self.centre!r}; choose 'next' or 'previous'")

    def choose_reused(self, step: Step, call: Call) -> Tensor:
        """All positions but the few that are at work."""
        full = find_full(step, call, refresh=self.refresh, first=1, restart=self.restart)
        following, previous = call.feature("next"), call.feature("known_for") == 1
        wanted = following | previous
        if self.window:
            centre = following if self.centre == "next" else previous
            wanted = wanted | find_window(centre, call.feature("masked"), self.window)
        return ~(wanted | full[:, None])

    def name_reason(self) -> str:
        """The window."""
        return f"window of {self.window}"


def find_window(centres: Tensor, masked: Tensor, width: int) -> Tensor:
    """The masked positions nearest to each centre, `width` for each, `[B, L]`.

    Positions are counted among the masked ones only: the first to the left, the first to the
    right, the second to the left, and so on.

    Args:
        centres: Tokens that have a window, `[B, L]`; masked or not.
        masked: Masked positions, `[B, L]`.
        width: Neighbours of each.

    Example:
        >>> line = torch.ones(1, 6, dtype=torch.bool)
        >>> centre = torch.tensor([[False, True, False, False, False, False]])
        >>> find_window(centre, line, 3).int()
        tensor([[1, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """
    rank = masked.long().cumsum(1)
    total = rank[:, -1:, None]
    # masked positions to the left of each centre, without itself, and to its right
    left = (rank - masked.long())[:, :, None]
    right = total - rank[:, :, None]
    from_left = torch.minimum(left, torch.clamp(width - right, min=(width + 1) // 2))
    from_right = torch.minimum(right, width - from_left)
    other = rank[:, None, :]
    own = rank[:, :, None]
    # distance in masked positions: a centre that is masked itself has distance 0
    nearer_left = (other <= left) & (other > left - from_left)
    nearer_right = (other > own) & (other <= own + from_right)
    found = (nearer_left | nearer_right) & masked[:, None, :] & centres[:, :, None]
    return found.any(1)
