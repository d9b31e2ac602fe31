"""Schedules of a profile as plain values: the best for a number of calls, and for every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from erta_framework import Profile
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.ertacache import Signal
from erta_policies.planning._costs import Cost, price_edges
from erta_policies.shared import find_cheapest_paths

GAMMA = 2.0
"""Power of the edge costs: our choice, between a plain sum (1) and MeanCache's best (4)."""


def plan_steps(
    profile: Profile,
    calls: int,
    cost: Cost = "reuse",
    *,
    gamma: float = GAMMA,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> tuple[int, ...]:
    """The computed steps of the best schedule of so many network calls.

    Args:
        profile: A residual profile.
        calls: Network calls of each branch.
        cost: What an edge costs; see `price_edges`.
        gamma: Power of the edge costs.
        signal: How guidance branches combine.
        longest: Longest edge in steps; by default all.
        monotone: Whether gaps may only shrink.

    Returns:
        Step indices, rising; 0 and the last are among them.

    Raises:
        ProfileError: So few calls cannot span the schedule, or the profile lacks a statistic.

    Example:
        >>> plan_steps(profile, calls=12)  # doctest: +SKIP
        (0, 4, 9, 14, 19, 24, 29, 34, 39, 43, 47, 49)
    """
    plans = plan_all_calls(
        profile, cost, gamma=gamma, signal=signal, longest=longest, monotone=monotone
    )
    return take_within(plans, calls).computed


def plan_all_calls(
    profile: Profile,
    cost: Cost = "reuse",
    *,
    gamma: float = GAMMA,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> Mapping[int, StepSchedule]:
    """The best schedule of exactly so many calls, by that number, all from one pass.

    The predicted error never rises with the calls: a schedule that seems worse than the best of
    fewer calls, as rounding may make it between equal evaluations, is given the error of that one.

    Args:
        profile: A residual profile.
        cost: What an edge costs; see `price_edges`.
        gamma: Power of the edge costs.
        signal: How guidance branches combine.
        longest: Longest edge in steps; by default all.
        monotone: Whether gaps may only shrink.
    """
    table = price_edges(profile, cost, signal=signal, longest=longest, monotone=monotone)
    found: dict[int, StepSchedule] = {}
    best: StepSchedule | None = None
    for calls, path in sorted(find_cheapest_paths(table, gamma).items()):
        best = path if best is None or total_cost(path) < total_cost(best) else best
        found[calls] = replace(path, predicted=best.predicted)
    return found


def total_cost(path: StepSchedule) -> float:
    """The predicted error of a planned path, infinite without one."""
    return float("inf") if path.predicted is None else path.predicted


def take_within(plans: Mapping[int, StepSchedule], calls: int) -> StepSchedule:
    """The schedule of at most so many calls.

    Raises:
        ProfileError: Every schedule takes more.
    """
    fitting = [number for number in plans if number <= calls]
    if not fitting:
        least = f"at least {min(plans)} are needed" if plans else "the limits leave no plan at all"
        raise ProfileError(
            f"{calls} network calls cannot span the schedule of this profile: {least}; ask for "
            "more calls, or allow longer edges"
        )
    return plans[max(fitting)]


def read_edge_costs(table: Tensor, steps: Sequence[int]) -> list[float]:
    """Cost of each edge of a schedule; infinite where an edge is longer than the table has any.

    Args:
        table: `[T + 1, L]` by start and length, or `[L, T + 1, L]` by the length before as well.
        steps: Computed steps, rising from 0.
    """
    nodes = (*steps, table.shape[-2] - 1)
    before, found = table.shape[-1], []
    for start, end in pairwise(nodes):
        length = end - start
        row = table if table.ndim == 2 else table[min(before, table.shape[-1]) - 1]
        found.append(float(row[start, length - 1]) if length <= table.shape[-1] else float("inf"))
        before = length
    return found
