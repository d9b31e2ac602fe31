"""Pools what a contender measured in several runs, as if it had been one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

SPREADS = {
    "psnr_std": "psnr_mean",
    "ssim_std": "ssim_mean",
    "psnr_fine_std": "psnr_fine_mean",
    "psnr_sets_std": "psnr_mean",
}
"""Deviations, and the means that they are about."""
WORST = ("psnr_worst", "psnr_fine_worst", "solution_psnr")
SUMMED = ("seeds",)
SAME = ("steps", "budget", "prompts", "calibration_calls", "solving_calls", "bytes_held")
"""Numbers that are not averaged over seed sets."""


def pool_rows(rows: Sequence[Record]) -> dict[str, Any]:
    """One row of the same contender in several runs, as if it had been measured in one."""
    measured = [row for row in rows if row.get("seeds")]
    if len(measured) < len(rows):  # it ran in some only: that is no measurement of all seed sets
        return dict(next(row for row in rows if not row.get("seeds")))
    weights = [float(row["seeds"]) for row in rows]
    found = dict(max(rows, key=lambda row: row["status"] != "measured"))  # off budget in any
    for key in found:
        if key in SAME or not all(is_number(row.get(key)) for row in rows):
            continue
        values: list[float] = [row[key] for row in rows]
        if key in SUMMED:
            found[key] = sum(values)
        elif key in WORST:
            found[key] = min(values)
        elif key in SPREADS:
            found[key] = pool_spread(values, [row[SPREADS[key]] for row in rows], weights)
        elif len(set(values)) > 1:  # a whole number stays one
            found[key] = average(values, weights)
    return found


def pool_spread(
    spreads: Sequence[float], means: Sequence[float], weights: Sequence[float]
) -> float:
    """Deviation of all samples, from those of parts about their own means.

    Example:
        >>> pool_spread([0.0, 0.0], [1.0, 3.0], [1.0, 1.0])
        1.0
    """
    squares = [spread**2 + mean**2 for spread, mean in zip(spreads, means, strict=True)]
    return math.sqrt(max(0.0, average(squares, weights) - average(means, weights) ** 2))


def average(values: Sequence[float], weights: Sequence[float]) -> float:
    """The weighted mean."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def is_number(value: object) -> bool:
    """Whether a value can be averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool)
