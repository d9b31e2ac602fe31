"""Weighted sums of kept outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erta_framework.modules._actions import Weights


def sum_kept(levels: Sequence[list[Tensor]], weights: Weights) -> list[Tensor]:
    """`sum_k weights[k] * levels[k]`, tensor by tensor; the newest itself for `(1.0,)`.

    Args:
        levels: The tensors of every kept output, newest first.
        weights: One for each level; or such weights for each sample.
    """
    first = weights[0]
    if not isinstance(first, tuple):
        if tuple(weights) == (1.0,):
            return levels[0]
        return [sum_weighted(column, weights) for column in zip(*levels, strict=True)]
    return [sum_weighted_rows(column, weights) for column in zip(*levels, strict=True)]


def sum_weighted(values: Sequence[Tensor], weights: Sequence[object]) -> Tensor:
    """One tensor of every level, weighted; counts and masks are those of the newest."""
    if not values[0].is_floating_point():
        return values[0]
    total: Tensor = values[0] * float(weights[0])  # type: ignore[arg-type]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=float(weight))  # type: ignore[arg-type]
    return total


def sum_weighted_rows(values: Sequence[Tensor], weights: Sequence[object]) -> Tensor:
    """The same with weights for each sample, `[R][K]`."""
    newest = values[0]
    if not newest.is_floating_point():
        return newest
    table = torch.tensor(weights, dtype=newest.dtype, device=newest.device)
    table = table.reshape(*table.shape, *[1] * (newest.ndim - 1))
    total: Tensor = newest * table[:, 0]
    for level, value in enumerate(values[1:], start=1):
        total += value * table[:, level]
    return total
