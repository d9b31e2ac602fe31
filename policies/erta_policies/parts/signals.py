"""How much a tensor changed, as one number a sample or one for the batch."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def mean_magnitude(values: Tensor, per_sample: bool = True) -> Tensor:
    """Mean magnitude in float32, `[B]`; with `per_sample=False` over the whole batch, `[1]`.

    Example:
        >>> mean_magnitude(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        tensor([2., 0.])
    """
    magnitude = values.abs().float()
    return magnitude.flatten(1).mean(1) if per_sample else magnitude.mean().reshape(1)


def relative_l1(now: Tensor, before: Tensor, per_sample: bool = True) -> Tensor:
    """`mean |now - before| / mean |before|`, `[B]` or `[1]`; infinite where `before` is zero.

    The signal of TeaCache (arXiv 2411.19108) and of first-block caches.
    """
    size = mean_magnitude(before, per_sample)
    change = mean_magnitude(now - before, per_sample)
    return torch.where(size > TINY, change / size.clamp_min(TINY), torch.inf)
