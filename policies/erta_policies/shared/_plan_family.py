"""`PlanFamily`: all plans of so many full steps whose gaps never grow, within bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from erta_framework.errors import PolicyError
from erta_policies.shared._plans import StepPlan

MOST_PLANS = 100_000
"""Families with more plans than this are refused: no one scores them."""


@dataclass(frozen=True, slots=True)
class PlanFamily:
    """The plans of so many full steps whose gaps never grow, within bounds.

    Long gaps come first, where features change slowly, and short ones last. All of them are listed:
    there are few, so that nothing is drawn at random.

    Source: constraints and bounds of ProCache (arXiv 2512.17298); listing them all is ours.

    Attributes:
        num_steps: Steps, T.
        full: Full steps, B.
        shortest: Fewest reused steps between two full ones.
        longest: Most.

    Raises:
        PolicyError: There is no such plan; says how many full steps there can be.

    Example:
        >>> len(PlanFamily(50, 17).segments), PlanFamily(50, 17).segments[-1]
        (30, (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2))
    """

    num_steps: int
    full: int
    shortest: int = 1
    longest: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest or self.num_steps < 1:
            raise PolicyError(
                f"plans of {self.num_steps} steps with {self.shortest} to {self.longest} reused "
                "ones in a row; give at least 1 step, and from 0 up to more or as many"
            )
        low = math.ceil(self.num_steps / (self.longest + 1))
        high = self.num_steps // (self.shortest + 1)
        if not low <= self.full <= high:
            known = f"from {low} to {high} full steps are possible" if low <= high else "none are"
            raise PolicyError(
                f"no plan of {self.num_steps} steps has {self.full} full ones and between them "
                f"{self.shortest} to {self.longest} reused ones: {known}; give another number, or "
                "other bounds of the gaps"
            )

    @property
    def segments(self) -> tuple[tuple[int, ...], ...]:
        """Segments of every plan, the steepest plan first."""
        return list_partitions(self.num_steps, self.full, self.shortest + 1, self.longest + 1)

    @property
    def plans(self) -> tuple[StepPlan, ...]:
        """Every plan, in the same order."""
        return tuple(map(StepPlan.of_segments, self.segments))

    @property
    def gradual(self) -> StepPlan:
        """The plan whose segments are nearest to a straight line from the longest to the shortest.

        Source: ours, for where nothing was measured.
        """
        return find_gradual(self)

    def take(self, most: int) -> tuple[int, ...]:
        """Places of at most so many plans, spread over the family.

        Example:
            >>> PlanFamily(50, 17).take(4)
            (0, 10, 19, 29)
        """
        number = len(self.segments)
        if number <= most:
            return tuple(range(number))
        if most < 2:
            return (number // 2,)
        return tuple(round(k * (number - 1) / (most - 1)) for k in range(most))


@lru_cache(maxsize=256)
def find_gradual(family: PlanFamily) -> StepPlan:
    """The gradual plan of a family; kept, since each request of a budget asks for several."""
    most, least, last = family.longest + 1, family.shortest + 1, max(1, family.full - 1)
    line = [most + (least - most) * k / last for k in range(family.full)]
    excess = (sum(line) - family.num_steps) / family.full

    def distance(lengths: Iterable[int]) -> float:
        return sum((a - b + excess) ** 2 for a, b in zip(lengths, line, strict=True))

    return StepPlan.of_segments(min(family.segments, key=distance))


@lru_cache(maxsize=256)
def list_partitions(total: int, parts: int, least: int, most: int) -> tuple[tuple[int, ...], ...]:
    """All ways to write a number as so many parts that never grow, each from `least` to `most`.

    Raises:
        PolicyError: There are too many to list.

    Example:
        >>> list_partitions(6, 3, 1, 3)
        ((3, 2, 1), (2, 2, 2))
    """

    def list_first(rest: int, left: int, cap: int) -> range:
        """Lengths that the first of the parts that are left may have."""
        highest = min(cap, rest - least * (left - 1))
        lowest = max(least, -(-rest // left))  # the others are no longer than this one
        return range(highest, lowest - 1, -1)

    @cache
    def count(rest: int, left: int, cap: int) -> int:
        """How many ways there are, or a number above `MOST_PLANS`."""
        if left == 0:
            return 1
        found = 0
        for first in list_first(rest, left, cap):
            found += count(rest - first, left - 1, first)
            if found > MOST_PLANS:
                break
        return found

    def split(rest: int, left: int, cap: int) -> Iterator[tuple[int, ...]]:
        if left == 0:
            yield ()
            return
        for first in list_first(rest, left, cap):
            for others in split(rest - first, left - 1, first):
                yield (first, *others)

    if count(total, parts, most) > MOST_PLANS:
        raise PolicyError(
            f"there are more than {MOST_PLANS} plans of {total} steps with {parts} full ones and "
            f"segments of {least} to {most} steps; give closer bounds of the gaps"
        )
    return tuple(split(total, parts, most))
