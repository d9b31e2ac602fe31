"""The sawtooth that a cache leaves in changes from step to step."""

from __future__ import annotations

import math
from collections.abc import Sequence

LONGEST = 8
"""Longest period that is looked for."""
GAPS = 4
"""Gaps in a row that must show it; by chance alone fewer do."""
STEEP = 4.0
"""How many times a tooth is as high as whatever lies between two; a published profile has 12."""
FLOOR = 1e-3
"""Part of the largest change below which one is rounding: what a cache repeats is not exact."""
ALTERNATING = 100.0
"""The same for a period of 2: solvers of two stages alternate by themselves, but less."""


def find_period(changes: Sequence[float]) -> int | None:
    """The period of a sawtooth in the changes from step to step, or None.

    A cache with a fixed interval answers with an older output between its steps, so that every n-th
    change is much larger than all others. Smooth changes, a steep start and single peaks are none.

    Source: ours; the case is the released Wan 2.1 profile of arXiv 2512.23258, in which every
    fifth value is about 12 times the others.

    Args:
        changes: One value a step, not negative; NaN where it is not known.

    Example:
        >>> find_period([12.0, 1.0, 1.1, 0.9, 1.0] * 6)
        5
        >>> find_period([1.0 / (1 + step) for step in range(50)]) is None
        True
    """
    floor = FLOOR * max((change for change in changes if math.isfinite(change)), default=0.0)
    for period in range(2, LONGEST + 1):
        factor = ALTERNATING if period == 2 else STEEP
        for phase in range(period):
            run = 0
            for start in range(phase, len(changes) - period, period):
                between = changes[start + 1 : start + period]
                teeth = min(changes[start], changes[start + period])
                known = all(map(math.isfinite, (teeth, *between)))
                run = run + 1 if known and teeth > factor * max(floor, *between) else 0
                if run >= GAPS:
                    return period
    return None
