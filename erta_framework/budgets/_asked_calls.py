"""How many network calls are asked for: the one place that rounds them."""

from __future__ import annotations

import math

TOLERANCE = 1e-9
"""Added before rounding down, so that a product of fractions counts as the number it stands for."""


def count_asked_calls(
    num_steps: int,
    *,
    calls: int | None = None,
    speedup: float | None = None,
    work: float | None = None,
) -> int | None:
    """Network calls of each branch that a budget allows; None where none of the three is given.

    Args:
        num_steps: Steps of the schedule; there are never more calls.
        calls: The calls themselves.
        speedup: Least number of steps for each call.
        work: Most work, in network calls' worth.

    Example:
        >>> count_asked_calls(50, speedup=4.0)
        12
    """
    if calls is not None:
        return min(calls, num_steps)
    if speedup is not None:
        return math.floor(num_steps / speedup + TOLERANCE)
    if work is not None:
        return min(math.floor(work + TOLERANCE), num_steps)
    return None
