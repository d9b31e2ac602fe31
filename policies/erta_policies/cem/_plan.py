"""The plan of CEM: dynamic programming over steps and calls, with gaps near the mean one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.shared import find_cheapest_paths

Weight = Literal["none", "linear", "quadratic"]
POWERS: dict[Weight, int] = {"none": 0, "linear": 1, "quadratic": 2}
"""The power of the number of reused steps that an edge's error is multiplied by."""


def plan_gaps(profile: Profile, calls: int, weight: Weight = "quadratic") -> StepSchedule:
    """The cheapest schedule of exactly so many calls, whose gaps are near the mean gap.

    The first and the last step are computed. A gap is at most one step shorter or longer than
    `round(steps / calls)`; where no such plan ends at the last step, the limit grows by one until
    there is one, which is ours.

    Args:
        profile: Of a `CEMProfiler`.
        calls: Network calls of each branch.
        weight: How an edge's error counts.

    Raises:
        ProfileError: The profile's longest gap is too short for so few calls.

    Example:
        >>> plan_gaps(profile, calls=10).computed  # doctest: +SKIP
        (0, 6, 12, 18, 24, 29, 34, 39, 44, 49)
    """
    edges = price_gaps(profile, weight)
    num_steps, longest = len(edges) - 1, edges.shape[1]
    calls = min(calls, num_steps)
    mean = round(num_steps / calls)
    lengths = torch.arange(1, longest + 1)
    for spread in range(1, max(mean, longest) + 1):
        near = (lengths - mean).abs() <= spread
        allowed = torch.where(near, edges, torch.inf)
        allowed[num_steps - 1, 0] = 0.0  # from the last step to the end
        found = find_cheapest_paths(allowed, most=calls)
        if calls in found:
            return found[calls]
    least = -(-(num_steps - 1) // longest) + 1
    raise ProfileError(
        f"{calls} calls of {num_steps} steps need gaps longer than the {longest} steps of this "
        f"profile: ask for {least} calls or more, or calibrate with a larger longest"
    )


def price_gaps(profile: Profile, weight: Weight) -> Tensor:
    """Cost of the edge from the computed step j to the next, by start and length, `[T + 1, L + 1]`.

    An edge of C + 1 steps reuses C; it costs `C^p` times the change over C steps that ends where
    the edge does. One of a single step costs nothing.
    """
    rows = profile.statistics["rows"].clamp(min=1)
    change = profile.statistics["change"] / rows  # [L, T]
    num_steps = change.shape[1]
    longest = min(len(change), num_steps - 1)  # a short run has no longer gaps
    edges = change.new_full((num_steps + 1, longest + 1), torch.inf)
    edges[:num_steps, 0] = 0.0
    for reused in range(1, longest + 1):
        ends = change[reused - 1, reused + 1 :]
        edges[: len(ends), reused] = reused ** POWERS[weight] * ends
    return edges
