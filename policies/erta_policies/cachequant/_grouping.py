"""Ordered grouping of steps: each group is one refresh and the steps that reuse it.

Dynamic programming schedule of CacheQuant (arXiv 2503.01323, section 3.2): with K groups, the
starts 0 = r_1 < ... < r_K minimise `sum_k sum_t in group k ||X_t - X_(r_k)||_1`, where a group is
from ceil(N/2) to 2N steps long and K = ceil(T/N).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_policies.shared import find_cheapest_paths


def sum_groups(distances: Tensor) -> Tensor:
    """The cost of every group of steps, `[T, L + 1]`, by its start and its length less 1.

    It is the sum of the distances of its steps to its start, added up a step at a time.

    Args:
        distances: `[T, L]`: of step t to step t - 1, t - 2, ..., t - L.

    Returns:
        Infinite for groups that end after the last step.

    Example:
        >>> sum_groups(torch.tensor([[0.0], [1.0], [2.0]]))
        tensor([[0., 1.],
                [0., 2.],
                [0., inf]])
    """
    steps, lags = distances.shape
    costs = distances.new_full((steps, lags + 1), torch.inf)
    costs[:, 0] = 0.0
    for lag in range(1, min(lags + 1, steps)):
        # a group of lag + 1 steps from i ends with step i + lag
        costs[: steps - lag, lag] = costs[: steps - lag, lag - 1] + distances[lag:, lag - 1]
    return costs


def group_steps(distances: Tensor, interval: int, groups: int | None = None) -> tuple[int, ...]:
    """The starts of the groups that cost least together.

    Args:
        distances: `[T, L]`, as in `sum_groups`.
        interval: N; groups are from ceil(N/2) to 2N steps long.
        groups: How many; by default K = ceil(T/N).

    Raises:
        PolicyError: No such groups cover the steps, or the distances do not reach far enough.

    Example:
        >>> d = torch.zeros(6, 3)
        >>> d[3:] = 1.0
        >>> group_steps(d, interval=2)
        (0, 3, 4)
    """
    steps, lags = distances.shape
    count = math.ceil(steps / interval) if groups is None else groups
    shortest, longest = math.ceil(interval / 2), min(2 * interval, steps)
    if not count * shortest <= steps <= count * longest:
        raise PolicyError(
            f"no {count} groups of {shortest} to {longest} steps cover {steps} steps; give an "
            f"interval from 1 to {2 * steps}, or grouping='even'"
        )
    if lags < longest - 1:
        raise PolicyError(
            f"groups of up to {longest} steps need distances {longest - 1} steps back, the profile "
            f"has {lags}; calibrate with an interval of {interval} or more"
        )
    costs = sum_groups(distances)[:, :longest].clone()
    costs[:, : shortest - 1] = torch.inf
    # a node past the end, so that the last group may be of any length
    edges = costs.new_full((steps + 2, longest), torch.inf)
    edges[:steps] = costs
    edges[steps, 0] = 0.0
    path = find_cheapest_paths(edges, most=count + 1)[count + 1]
    return path.computed[:-1]


def group_evenly(steps: int, interval: int) -> tuple[int, ...]:
    """The starts of groups of N steps, the last of which may be shorter.

    Example:
        >>> group_evenly(7, 3)
        (0, 3, 6)
    """
    return tuple(range(0, steps, interval))
