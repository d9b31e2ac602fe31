"""Plans of a profile as plain values: the best steps for a number of calls, and all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import ProfileError
from erta_policies.ertacache import Signal
from erta_policies.planning.costs import Cost, edges
from erta_policies.shared import Path, cheapest

GAMMA = 2.0
"""Power of the edge costs: our choice, between a plain sum (1) and MeanCache's best (4)."""


def planned_steps(
    profile: Profile,
    calls: int,
    cost: Cost = "reuse",
    *,
    gamma: float = GAMMA,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> tuple[int, ...]:
    """The computed steps of the best schedule with at most so many network calls.

    Args:
        profile: A residual profile.
        calls: Network calls of each branch.
        cost: What an edge costs; see `edges`.
        gamma: Power of the edge costs.
        signal: How guidance branches combine.
        longest: Longest edge in steps; by default all.
        monotone: Whether gaps may only shrink.

    Returns:
        Step indices, rising; 0 and the last are among them.

    Raises:
        ProfileError: So few calls cannot span the schedule, or the profile lacks a statistic.

    Example:
        >>> planned_steps(profile, calls=12)  # doctest: +SKIP
        (0, 4, 9, 14, 19, 24, 29, 34, 39, 43, 47, 49)
    """
    plans = front(profile, cost, gamma=gamma, signal=signal, longest=longest, monotone=monotone)
    return within(plans, calls).steps


def front(
    profile: Profile,
    cost: Cost = "reuse",
    *,
    gamma: float = GAMMA,
    signal: Signal = "max",
    longest: int | None = None,
    monotone: bool = False,
) -> Mapping[int, Path]:
    """The best schedule of each number of calls, from one pass; fewer calls never predict less.

    Where more calls would not help, as between equal evaluations, the cheaper plan stands for both.

    Args:
        profile: A residual profile.
        cost: What an edge costs; see `edges`.
        gamma: Power of the edge costs.
        signal: How guidance branches combine.
        longest: Longest edge in steps; by default all.
        monotone: Whether gaps may only shrink.
    """
    table = edges(profile, cost, signal=signal, longest=longest, monotone=monotone)
    found: dict[int, Path] = {}
    best: Path | None = None
    for calls, path in sorted(cheapest(table, gamma).items()):
        best = path if best is None or path.total < best.total else best
        found[calls] = best
    return found


def within(plans: Mapping[int, Path], calls: int) -> Path:
    """The plan of at most so many calls.

    Raises:
        ProfileError: Every plan takes more.
    """
    fitting = [number for number in plans if number <= calls]
    if not fitting:
        least = f"at least {min(plans)} are needed" if plans else "the limits leave no plan at all"
        raise ProfileError(
            f"{calls} network calls cannot span the schedule of this profile: {least}; ask for "
            "more calls, or allow longer edges"
        )
    return plans[max(fitting)]


def edge_costs(table: Tensor, steps: Sequence[int]) -> list[float]:
    """What each edge of a schedule costs, of edges by start and length (and length before)."""
    nodes = (*steps, table.shape[-2] - 1)
    before, found = table.shape[-1], []
    for start, end in pairwise(nodes):
        length = end - start
        row = table if table.ndim == 2 else table[min(before, table.shape[-1]) - 1]
        found.append(float(row[start, length - 1]) if length <= table.shape[-1] else float("inf"))
        before = length
    return found
