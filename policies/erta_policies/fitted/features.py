"""What the fitted velocity is combined from, and the weights that published rules give to it.

The quantities at step i, with n kept velocities, in the order of a row of the moments:

| place | quantity |
|---|---|
| 0 | v_1, the newest computed velocity |
| 1 .. n - 1 | its backward differences: v_1 - v_2, v_1 - 2 v_2 + v_3, ... |
| n | the latents x |
| n + 1 | their displacement d = x - x_1 since the newest computed step |
| n + 2 | local target: the network's velocity where the cached run stands |
| n + 3 | trajectory target: the velocity that leads back to the sample's own full run |

A velocity that does not exist yet is 0 and is never used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from erta_policies.forecast import adams

EXTRA = 2
"""Latents and displacement."""
TARGETS = 2
"""Local and trajectory target."""


def quantities(velocities: Sequence[Tensor], x: Tensor, start: Tensor, depth: int) -> list[Tensor]:
    """The features of one step, each of the shape of `x`, in float64 where the device has it.

    Args:
        velocities: Computed velocities, newest first, at least one.
        x: Latents.
        start: Latents of the newest computed step.
        depth: n, how many velocities a row has places for.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    level = [value.to(wide) for value in velocities[:depth]]
    found = []
    while level:
        found.append(level[0])
        level = [a - b for a, b in pairwise(level)]
    absent = [torch.zeros_like(found[0])] * (depth - len(found))
    return [*found, *absent, x.to(wide), x.to(wide) - start.to(wide)]


def raw_weights(row: Sequence[float], depth: int) -> list[float]:
    """Weights of differences as weights of the velocities themselves; the others stay.

    Example:
        >>> raw_weights([1.0, 0.5, 0.0, 0.0], depth=2)
        [1.5, -0.5, 0.0, 0.0]
    """
    weights = [0.0] * depth
    for order, value in enumerate(row[:depth]):
        for k in range(order + 1):
            weights[k] += value * (-1) ** k * math.comb(order, k)
    return [*weights, *row[depth:]]


def plain(depth: int) -> list[float]:
    """Residual reuse, x + (v_1 - x_1), which is v_1 + d: what ERTACache reuses."""
    row = [0.0] * (depth + EXTRA)
    row[0], row[depth + 1] = 1.0, 1.0
    return row


def held(depth: int) -> list[float]:
    """The newest velocity as it is; on a computed step, the network's output."""
    return [1.0, *[0.0] * (depth + EXTRA - 1)]


def line(nodes: Sequence[float], start: float, end: float, depth: int) -> list[float]:
    """The mean over the interval of the line through the two newest velocities.

    Variable-step Adams-Bashforth 2: a first-order Taylor forecast, averaged.

    Example:
        >>> line([1.0, 0.0], 1.0, 2.0, depth=2)
        [1.0, 0.5, 0.0, 0.0]
    """
    row = held(depth)
    if depth > 1 and len(nodes) > 1:
        row[1] = -adams(nodes[:2], start, end)[1]
    return row
