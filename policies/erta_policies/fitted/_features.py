"""What the fitted velocity is combined from, and the weights that published rules give to it.

The quantities at step i, with n kept velocities, in the order of a row of the normal equations:

| place | quantity |
|---|---|
| 0 | v_1, the newest computed velocity |
| 1 .. n - 1 | its backward differences: v_1 - v_2, v_1 - 2 v_2 + v_3, ... |
| n | the latents x |
| n + 1 | their displacement d = x - x_1 since the newest computed step |
| n + 2 | local target: the network's velocity at the latents of the cached run |
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


def build_features(
    velocities: Sequence[Tensor], x: Tensor, start: Tensor, depth: int
) -> list[Tensor]:
    """The n + 2 features of one step, each of the shape of `x`, in float64 where the device has it.

    Args:
        velocities: Computed velocities, newest first, at least one.
        x: Latents.
        start: Latents of the newest computed step.
        depth: n, how many velocities a row has places for.
    """
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    # the table of backward differences: each level is the differences of the one before, and its
    # first entry is a feature
    level = [value.to(wide) for value in velocities[:depth]]
    found = []
    while level:
        found.append(level[0])
        level = [a - b for a, b in pairwise(level)]
    absent = [torch.zeros_like(found[0])] * (depth - len(found))
    return [*found, *absent, x.to(wide), x.to(wide) - start.to(wide)]


def to_raw_weights(row: Sequence[float], depth: int) -> list[float]:
    """Weights of differences as weights of the velocities themselves; the others stay.

    Difference k of v_1, v_2, ... is `sum_j (-1)^j binom(k, j) v_{j+1}`.

    Example:
        >>> to_raw_weights([1.0, 0.5, 0.0, 0.0], depth=2)
        [1.5, -0.5, 0.0, 0.0]
    """
    weights = [0.0] * depth
    for order, value in enumerate(row[:depth]):
        for k in range(order + 1):
            weights[k] += value * (-1) ** k * math.comb(order, k)
    return [*weights, *row[depth:]]


def plain_weights(depth: int) -> list[float]:
    """Weights of residual reuse, x + (v_1 - x_1), which is v_1 + d: what ERTACache reuses."""
    row = [0.0] * (depth + EXTRA)
    row[0], row[depth + 1] = 1.0, 1.0
    return row


def velocity_weights(depth: int) -> list[float]:
    """Weights of the newest velocity as it is; on a computed step, the network's output."""
    return [1.0, *[0.0] * (depth + EXTRA - 1)]


def line_weights(nodes: Sequence[float], start: float, end: float, depth: int) -> list[float]:
    """Weights of the mean over the interval of the line through the two newest velocities.

    Variable-step Adams-Bashforth 2: a first-order Taylor forecast, averaged.

    Example:
        >>> line_weights([1.0, 0.0], 1.0, 2.0, depth=2)
        [1.0, 0.5, 0.0, 0.0]
    """
    row = velocity_weights(depth)
    if depth > 1 and len(nodes) > 1:
        row[1] = -adams(nodes[:2], start, end)[1]
    return row
