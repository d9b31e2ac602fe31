"""How far the input of a module is from the one at which its output was kept."""

from __future__ import annotations

from torch import Tensor

from erta_policies.shared import (
    measure_drift,
    measure_norms,
    measure_spread,
    measure_spread_drift,
)

FLOOR = 1e-6
"""The least spread of a token in the published formula, the root of its 1e-12."""


def measure_offset(now: Tensor, kept: Tensor, spread: float = 1.0, channels: int = -1) -> Tensor:
    """The offset of each sample, `[B]`: its drift squared, and that of its spread.

    `S = (mean |h - h'| / mean |h'|)^2 + spread * (mean |std(h) - std(h')| / mean std(h'))^2`, with
    the norm and the standard deviation of each token over its channels.

    Source: ours, after AdaCorrection, which is not relative and has no change in its second term.

    Args:
        now: The input h, `[B, N, C]` or any shape with samples first.
        kept: The input h' at which the output was kept, of the same shape.
        spread: Weight of the second term.
        channels: The dimension of the channels.

    Example:
        >>> import torch
        >>> measure_offset(torch.full((1, 2, 4), 1.5), torch.ones(1, 2, 4))
        tensor([0.2500])
    """
    drift = measure_drift(now, kept, channels=channels).square()
    if not spread:
        return drift
    return drift + spread * measure_spread_drift(now, kept, channels).square()


def measure_paper_offset(
    now: Tensor, kept: Tensor, spread: float = 1.0, channels: int = -1
) -> Tensor:
    """The offset of each sample as published, `[B]`.

    `S = (mean |h - h'|)^2 + spread * mean std(h)`, with the norm and the standard deviation of each
    token. Its second term is the spread of the current state, not a change.

    Source: AdaCorrection, arXiv 2602.13357, as its repository describes it (NoakLiu/FastCache-xDiT
    at 7d894fc). There the means are over the batch as well; here each sample has its own.

    It takes what `measure_offset` takes.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, -1.0]]])  # of unit variance
        >>> measure_paper_offset(x, x)
        tensor([1.])
    """
    moved = measure_norms(now - kept, channels).mean(1)
    return moved.square() + spread * measure_spread(now, channels).clamp_min(FLOOR).mean(1)
