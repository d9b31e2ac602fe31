"""MagCache's walk over a table of magnitude ratios: which steps are computed, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from erta_framework.errors import PolicyError

Rounding = Literal["floor", "nearest", "ceil"]
Resample = Literal["nearest", "consistent"]
Experts = Literal["t2v", "i2v"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The settings of a walk; `MagCache` explains them.

    Attributes:
        threshold: Largest summed error of a run of reused steps.
        max_skips: K, the longest run.
        retention: Part of the steps at the start that are computed.
        rounding: How the number of those steps is rounded.
        strict: Whether the error must stay below the threshold instead of not above it.
        forbidden: Indices of the table whose step is never reused.
        largest_change: Largest `|1 - ratio|` of a reused step.
        experts: Which of the two-expert rules holds, if one does.
    """

    threshold: float
    max_skips: int
    retention: float
    rounding: Rounding = "floor"
    strict: bool = True
    forbidden: tuple[int, ...] = ()
    largest_change: float = math.inf
    experts: Experts | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a branch stands among the calls of a step, for rules that count calls.

    Attributes:
        branch: Its place within the step.
        branches: Calls of a step that are counted; 1 where every branch counts for itself.
        high: Steps of the first of two networks.
    """

    branch: int = 0
    branches: int = 1
    high: int | None = None


def positions(entries: int, num_steps: int) -> list[float]:
    """Where each step of a schedule lies in a table of `entries`, not rounded yet.

    A single step is the last entry, as in the published code.
    """
    if num_steps == 1:
        return [float(entries - 1)]
    scale = (entries - 1) / (num_steps - 1)
    return [index * scale for index in range(num_steps)]


def nearest(entries: int, num_steps: int) -> list[int]:
    """The entry of the table that each step takes; halves are rounded to even.

    Source: `nearest_interp` of the MagCache repository, with NumPy's rounding.

    Example:
        >>> nearest(28, 20)
        [0, 1, 3, 4, 6, 7, 9, 10, 11, 13, 14, 16, 17, 18, 20, 21, 23, 24, 26, 27]
    """
    return [round(position) for position in positions(entries, num_steps)]


def resample_ratios(ratios: Sequence[float], num_steps: int, how: Resample) -> list[float]:
    """A table for another number of steps.

    `"nearest"` is the published way: it keeps ratios of single steps of the table, although a
    step of a shorter schedule spans several of them. `"consistent"`, ours, keeps their product:
    the sum of the logarithms is interpolated linearly and differences are taken.

    Example:
        >>> [resample_ratios([1.0, 0.5, 0.5], 2, how) for how in ("nearest", "consistent")]
        [[1.0, 0.5], [1.0, 0.25]]
    """
    if num_steps == len(ratios):
        return list(ratios)
    if how == "nearest":
        return [ratios[entry] for entry in nearest(len(ratios), num_steps)]
    sums = [0.0]
    for ratio in ratios[1:]:
        sums.append(sums[-1] + math.log(ratio))
    at = [interpolate(sums, position) for position in positions(len(ratios), num_steps)]
    return [1.0] + [math.exp(b - a) for a, b in pairwise(at)]


def interpolate(values: Sequence[float], position: float) -> float:
    """The value at a position between two entries, linearly."""
    left = min(int(position), len(values) - 2) if len(values) > 1 else 0
    part = position - left
    return values[left] + part * (values[min(left + 1, len(values) - 1)] - values[left])


def kept(rule: Rule, place: Place, num_steps: int) -> list[bool]:
    """The steps that are computed because reuse has not begun (retention).

    Raises:
        PolicyError: The rule has two networks and nobody says where the second takes over.
    """
    calls, position = num_steps * place.branches, place.branch
    counted = [index * place.branches + position for index in range(num_steps)]
    if rule.experts is None:
        part = rule.retention * calls
        limit = {
            "floor": math.floor(round(part, 9)),
            "nearest": math.floor(part + 0.5),
            "ceil": math.ceil(round(part, 9)),
        }[rule.rounding]
        return [call < limit for call in counted]
    if place.high is None:
        raise PolicyError(
            "this table spans two networks, and the step at which the second takes over is not "
            "known; give high_steps=<steps of the first>, or boundary=<its sigma>"
        )
    switch = place.high * place.branches
    second = (calls - switch) * rule.retention + switch
    if rule.experts == "i2v":
        return [call < math.floor(round(second, 9)) for call in counted]
    first = math.floor(round(switch * rule.retention, 9))
    return [call < first or switch <= call <= round(second, 9) for call in counted]


def walk(
    ratios: Sequence[float],
    rule: Rule,
    place: Place,
    num_steps: int,
    resample: Resample = "nearest",
) -> list[tuple[bool, str]]:
    """For every step whether it is computed, and why.

    With p, e and k set to 1, 0 and 0 at each computed step, every further step multiplies p by
    its ratio, adds `|1 - p|` to e and 1 to k; it is reused while e and k stay within bounds.

    Args:
        ratios: The table, the first entry 1.
        rule: Thresholds.
        place: Which branch this is.
        num_steps: Steps of the schedule.
        resample: How the table is made to fit it.
    """
    table = resample_ratios(ratios, num_steps, resample)
    entries = nearest(len(ratios), num_steps)
    p, e, k = 1.0, 0.0, 0
    found: list[tuple[bool, str]] = []
    for index, early in enumerate(kept(rule, place, num_steps)):
        if early or index == 0:
            found.append((True, "warm-up"))
            continue
        p *= table[index]
        e += abs(1.0 - p)
        k += 1
        why = explain_refusal(rule, table[index], entries[index], e, k)
        found.append((why is not None, why or f"error {e:.4f}, {k} in a row"))
        if why is not None:
            p, e, k = 1.0, 0.0, 0
    return found


def run_errors(table: Sequence[float], longest: int) -> list[float]:
    """The summed error of every run of reused steps that a walk could come to.

    Example:
        >>> run_errors([1.0, 0.5, 0.5], longest=2)
        [0.5, 1.25, 0.5]
    """
    found = []
    for start in range(len(table)):
        p, e = 1.0, 0.0
        for ratio in table[start + 1 : start + 1 + longest]:
            p *= ratio
            e += abs(1.0 - p)
            found.append(e)
    return found


def explain_refusal(rule: Rule, ratio: float, entry: int, error: float, run: int) -> str | None:
    """Why a step is computed; None where it is reused."""
    if entry in rule.forbidden:
        return f"entry {entry} of the table is never reused"
    if not (error < rule.threshold if rule.strict else error <= rule.threshold):
        return f"error {error:.4f} against {rule.threshold:g}"
    if run > rule.max_skips:
        return f"{rule.max_skips} reused in a row"
    if abs(1.0 - ratio) > rule.largest_change:
        return f"ratio {ratio:.4f} is far from 1"
    return None
