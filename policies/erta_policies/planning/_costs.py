"""Costs of the edges of a schedule, from the statistics of a residual profile.

Shapes: b guidance branches, T steps, L the longest edge in steps. An edge from the computed step j
to the next computed one, j + l, is kept at `[j, l - 1]`; an edge of one step reuses no step and
costs 0. Pair statistics are `[b, T, T]` by source and step, as in
the statistics of `erta_policies.ertacache`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import (
    Signal,
    affine_fit,
    average_samples,
    combine_branches,
    find_present_pairs,
    pair_errors,
)
from erta_policies.shared import forbid_growing_gaps

Cost = Literal["reuse", "grouping", "integrated", "corrected", "forecast"]


def price_edges(
    profile: Profile,
    cost: Cost = "reuse",
    *,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> Tensor:
    """Costs of all edges for `erta_policies.planning.find_cheapest_paths`.

    An edge from the computed step j to the next one i is charged for the steps t between, which
    reuse step j:

    * `"reuse"`: the sum of `||r_j - r_t||_1 / ||r_t||_1`, ERTACache's error (arXiv 2508.21091). A
      sum of weighted L1 distances over a schedule is what other papers report for GCache; the
      weight `1 / ||r_t||_1` is ours.
    * `"grouping"`: the sum of `|r_j - r_t|`, the ordered grouping of CacheQuant (arXiv 2503.01323)
      on residuals of the whole network.
    * `"integrated"`: the root mean square of `sum_t dsigma_t (r_j - r_t)`, the error that the edge
      leaves in the latents. MeanCache's edges (arXiv 2601.19961) measure the same for its estimate
      of the mean velocity; residual reuse in its place is ours.
    * `"corrected"`, ours: the sum of the root mean square errors that remain where reuse is
      rectified by ERTACache's line, as `ErrorLinearizer` does with one for all channels.
    * `"forecast"`, ours: the sum of `|dsigma_t|` times the root mean square error of the line in
      sigma through the velocities of j and of the computed step before it, exactly as `Forecaster`
      of order 1 draws it. Its edges depend on the edge before.

    Args:
        profile: A residual profile.
        cost: One of the above.
        signal: How guidance branches combine, as in `pair_errors`.
        longest: Longest edge in steps; by default all of them.
        monotone: Whether no edge may be longer than the one before, ProCache's family (arXiv
            2512.17298).

    Returns:
        `[T + 1, L]` by start and length, or `[L, T + 1, L]` by the length of the edge before too.

    Raises:
        ProfileError: The profile was made by an earlier version and lacks a statistic.
        PolicyError: No such cost, or the longest edge is less than 1.
    """
    if cost not in FAMILIES:
        raise PolicyError(f"there is no edge cost {cost!r}; use one of {', '.join(FAMILIES)}")
    num_steps = profile.num_steps
    if longest is not None and longest < 1:
        raise PolicyError(f"the longest edge is {longest} steps, it must be at least 1")
    most = num_steps if longest is None else min(longest, num_steps)
    found = FAMILIES[cost](profile, signal, most)
    return forbid_growing_gaps(found) if monotone else found


def read_statistic(profile: Profile, name: str, cost: str) -> Tensor:
    """A statistic of a profile.

    Raises:
        ProfileError: The profile lacks it.
    """
    if name not in profile.statistics:
        raise ProfileError(
            f"this {profile.kind} profile has no {name!r}, which the edge cost {cost!r} needs: an "
            "earlier version made it; calibrate again, or plan with cost='reuse'"
        )
    return profile.statistics[name]


def read_sigmas(profile: Profile, cost: str) -> Tensor:
    """The sigma grid of a profile, `[T + 1]`."""
    return read_statistic(profile, "sigma", cost) / profile.samples


def sum_between(errors: Tensor, longest: int) -> Tensor:
    """Edges that cost the sum of the errors of the steps between: `[T + 1, L]` from `[T, T]`."""
    num_steps = len(errors)
    found = errors.new_full((num_steps + 1, longest), torch.inf)
    for start in range(num_steps):
        reach = min(longest, num_steps - start)
        between = errors[start, start + 1 : start + reach]
        found[start, :reach] = torch.cat([errors.new_zeros(1), between.cumsum(0)])
    return found


def price_reuse(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Relative L1 errors of reuse."""
    return sum_between(pair_errors(profile, signal), longest)


def price_grouping(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Absolute L1 distances between residuals."""
    read_statistic(profile, "distance", "grouping")
    present, usable = find_present_pairs(profile)
    errors = combine_branches(average_samples(profile, "distance"), present, signal)
    return sum_between(torch.where(usable, errors, torch.inf), longest)


def price_integrated(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Root mean square of the error that each edge leaves in the latents.

    Over an edge from j, the latents end up wrong by `E = sum_t w_t (r_j - r_t)`, with w_t the
    length of step t in sigma. A profile holds no residuals, only their mean squared distances
    `d(s, t)`. They suffice: as `2 <r_j - r_s, r_j - r_t> = d(j, s) + d(j, t) - d(s, t)`,

    `|E|^2 = (sum_t w_t) (sum_t w_t d(j, t)) - 1/2 sum_s sum_t w_s w_t d(s, t)`.

    Both terms are cumulative sums over the last step t, so that one pass prices all edges from j.
    """
    present, usable = find_present_pairs(profile)
    sizes = read_sigmas(profile, "integrated").diff()
    squares = profile.statistics["ee"].sum(dim=-1)
    channels = profile.statistics["ee"].shape[-1]
    elements = (profile.statistics["elements"] * channels)[:, None, :].clamp(min=1)
    apart = squares / elements  # mean squared distance of residuals, [b, j, t] with j < t
    apart = apart + apart.transpose(1, 2)
    num_steps = len(sizes)
    found = sizes.new_full((num_steps + 1, longest), torch.inf)
    for start in range(num_steps):
        steps = slice(start + 1, min(start + longest, num_steps))
        weight = torch.where(present[:, steps], sizes[steps], 0.0)  # [b, t]
        between = weight[:, :, None] * weight[:, None, :] * apart[:, steps, steps]  # [b, s, t]
        pulled = weight.cumsum(1) * (weight * apart[:, start, steps]).cumsum(1)  # [b, t]
        spread = between.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2) / 2  # [b, t]
        left = (pulled - spread).clamp(min=0).sqrt()
        both = (
            combine_branches(left[:, None], present[:, steps], signal)[0]
            if left.shape[1]
            else left[0]
        )
        both = torch.where(usable[start, steps].cummin(0).values, both, torch.inf)
        found[start, : len(both) + 1] = torch.cat([both.new_zeros(1), both])
    return found


def price_corrected(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Root mean square errors that the affine fit of reuse leaves."""
    present, usable = find_present_pairs(profile)
    left = affine_fit(profile, per_channel=False).left[..., 0]
    errors = combine_branches(left, present, signal)
    return sum_between(torch.where(usable, errors, torch.inf), longest)


def price_forecast(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Errors of a line in sigma, by the length of the edge before: `[L, T + 1, L]`.

    The line through the velocities of the computed steps i (before) and j gives at step t
    `(1 + a) v_j - a v_i`, with `a = (sigma_t - sigma_j) / (sigma_j - sigma_i)`. Its mean squared
    error follows from the mean squared distances `d` of the velocities:

    `|(1 + a) v_j - a v_i - v_t|^2 = (1 + a) a d(i, j) + (1 + a) d(j, t) - a d(i, t)`.

    Where no evaluation came before, v_j itself is reused and the error is `d(j, t)`.
    """
    read_statistic(profile, "velocity", "forecast")
    present, usable = find_present_pairs(profile)
    apart = average_samples(profile, "velocity")
    apart = apart + apart.transpose(1, 2)
    grid = read_sigmas(profile, "forecast")
    sizes, num_steps = grid.diff().abs(), len(grid) - 1
    found = grid.new_full((longest, num_steps + 1, longest), torch.inf)
    for start in range(num_steps):
        steps = slice(start + 1, min(start + longest, num_steps))
        reach = steps.stop - steps.start
        before = torch.arange(start - 1, max(start - longest, 0) - 1, -1)  # gaps 1, 2, ...
        plain = apart[:, start, None, steps]  # [b, 1, t], without an evaluation before
        errors = plain.expand(-1, longest, -1).clone()  # [b, gap before, t]
        if len(before):
            a = (grid[steps] - grid[start]) / (grid[start] - grid[before])[:, None]  # [gap, t]
            line = (
                (1 + a) * a * apart[:, before, start, None]
                + (1 + a) * plain
                - a * apart[:, before, steps]
            )
            there = present[:, before, None]
            errors[:, : len(before)] = torch.where(there, line, plain)
        rms = combine_branches(errors.clamp(min=0).sqrt(), present[:, steps], signal)
        rms = torch.where(usable[start, steps], rms * sizes[steps], torch.inf)
        found[:, start, 1 : reach + 1] = rms.cumsum(1)
        found[:, start, 0] = 0.0
    return found


FAMILIES: Mapping[str, Callable[[Profile, Signal, int], Tensor]] = MappingProxyType(
    {
        "reuse": price_reuse,
        "grouping": price_grouping,
        "integrated": price_integrated,
        "corrected": price_corrected,
        "forecast": price_forecast,
    }
)
"""Edge costs by name."""
