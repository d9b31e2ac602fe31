"""What an edge of a schedule costs, from the statistics of a residual profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import Signal, affine_fit, combined, pair_errors, per_sample, presence
from erta_policies.shared import falling

Cost = Literal["reuse", "grouping", "integrated", "corrected", "forecast"]


def edges(
    profile: Profile,
    cost: Cost = "reuse",
    *,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> Tensor:
    """Costs of all edges for `erta_policies.parts.paths.cheapest`.

    An edge from the computed step j to the next one i is charged for the steps t between, which are
    answered from step j:

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
    num_steps = int(profile.fingerprint["num_steps"])
    if longest is not None and longest < 1:
        raise PolicyError(f"the longest edge is {longest} steps, it must be at least 1")
    most = num_steps if longest is None else min(longest, num_steps)
    found = FAMILIES[cost](profile, signal, most)
    return falling(found) if monotone else found


def required(profile: Profile, name: str, cost: str) -> Tensor:
    """A statistic.

    Raises:
        ProfileError: The profile lacks it.
    """
    if name not in profile.statistics:
        raise ProfileError(
            f"this {profile.kind} profile has no {name!r}, which the edge cost {cost!r} needs: an "
            "earlier version made it; calibrate again, or plan with cost='reuse'"
        )
    return profile.statistics[name]


def sigmas(profile: Profile, cost: str) -> Tensor:
    """The sigma grid of a profile, `[T + 1]`."""
    return required(profile, "sigma", cost) / profile.samples


def summed(errors: Tensor, longest: int) -> Tensor:
    """Edges that cost the sum of the errors of the steps between: `[T + 1, L]` from `[T, T]`."""
    num_steps = len(errors)
    found = errors.new_full((num_steps + 1, longest), torch.inf)
    for start in range(num_steps):
        reach = min(longest, num_steps - start)
        between = errors[start, start + 1 : start + reach]
        found[start, :reach] = torch.cat([errors.new_zeros(1), between.cumsum(0)])
    return found


def reuse(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Relative L1 errors of reuse."""
    return summed(pair_errors(profile, signal), longest)


def grouping(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Absolute L1 distances between residuals."""
    required(profile, "distance", "grouping")
    present, usable = presence(profile)
    errors = combined(per_sample(profile, "distance"), present, signal)
    return summed(torch.where(usable, errors, torch.inf), longest)


def integrated(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Root mean square of the error that each edge leaves in the latents."""
    present, usable = presence(profile)
    sizes = sigmas(profile, "integrated").diff()
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
        between = weight[:, :, None] * weight[:, None, :] * apart[:, steps, steps]
        # |sum_t w_t (r_j - r_t)|^2 from the distances alone, for every last t
        pulled = weight.cumsum(1) * (weight * apart[:, start, steps]).cumsum(1)
        spread = between.cumsum(1).cumsum(2).diagonal(dim1=1, dim2=2) / 2
        left = (pulled - spread).clamp(min=0).sqrt()
        both = combined(left[:, None], present[:, steps], signal)[0] if left.shape[1] else left[0]
        both = torch.where(usable[start, steps].cummin(0).values, both, torch.inf)
        found[start, : len(both) + 1] = torch.cat([both.new_zeros(1), both])
    return found


def corrected(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Root mean square errors that the affine fit of reuse leaves."""
    present, usable = presence(profile)
    left = affine_fit(profile, per_channel=False).left[..., 0]
    errors = combined(left, present, signal)
    return summed(torch.where(usable, errors, torch.inf), longest)


def forecast(profile: Profile, signal: Signal, longest: int) -> Tensor:
    """Errors of a line in sigma, by the length of the edge before: `[L, T + 1, L]`."""
    apart = required(profile, "velocity", "forecast")
    present, usable = presence(profile)
    apart = per_sample(profile, "velocity")
    apart = apart + apart.transpose(1, 2)
    grid = sigmas(profile, "forecast")
    sizes, num_steps = grid.diff().abs(), len(grid) - 1
    found = grid.new_full((longest, num_steps + 1, longest), torch.inf)
    for start in range(num_steps):
        steps = slice(start + 1, min(start + longest, num_steps))
        reach = steps.stop - steps.start
        before = torch.arange(start - 1, max(start - longest, 0) - 1, -1)  # gaps 1, 2, ...
        plain = apart[:, start, None, steps]  # without an evaluation before, it is reused
        errors = plain.expand(-1, longest, -1).clone()
        if len(before):
            a = (grid[steps] - grid[start]) / (grid[start] - grid[before])[:, None]
            line = (
                (1 + a) * a * apart[:, before, start, None]
                + (1 + a) * plain
                - a * apart[:, before, steps]
            )
            there = present[:, before, None]
            errors[:, : len(before)] = torch.where(there, line, plain)
        rms = combined(errors.clamp(min=0).sqrt(), present[:, steps], signal)
        rms = torch.where(usable[start, steps], rms * sizes[steps], torch.inf)
        found[:, start, 1 : reach + 1] = rms.cumsum(1)
        found[:, start, 0] = 0.0
    return found


FAMILIES: Mapping[str, Callable[[Profile, Signal, int], Tensor]] = MappingProxyType(
    {
        "reuse": reuse,
        "grouping": grouping,
        "integrated": integrated,
        "corrected": corrected,
        "forecast": forecast,
    }
)
"""Edge costs by name."""
