"""A search over one setting for an amount of work, with few samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from erta_bench.comparison._contender import SearchRange
from erta_framework.budgets import as_planner
from erta_framework.compatibility import Role, find_role
from erta_framework.plugins import Policy, find_hooks, flatten

EQUAL = 0.25
"""The search ends where the work is this near to the budget, in network calls."""
TRIES = 9
"""Values that are tried at the most for one budget."""


@dataclass(slots=True)
class SettingSearch:
    """Finds the value of a setting for an amount of work, and remembers what it tried.

    Attributes:
        range: Where the value may lie.
        measure: Work at a value, in network calls.
        tried: Work by value, over all budgets that were asked for.
    """

    range: SearchRange
    measure: Callable[[float], float]
    tried: dict[float, float] = field(default_factory=dict)

    def find(self, budget: float) -> float:
        """The value whose work is nearest to the budget.

        Example:
            >>> SettingSearch(SearchRange(1, 12, whole=True), lambda n: 50 / n).find(17)
            3
        """
        for _ in range(TRIES):
            nearest = min(self.tried.values(), key=lambda calls: abs(calls - budget), default=None)
            if nearest is not None and abs(nearest - budget) <= EQUAL:
                break
            between = self._between(budget)
            if between is None:
                break
            self.tried[between] = self.measure(between)
        # of two values that are equally near, the one with fewer calls: no row may compute more
        return min(self.tried, key=lambda v: (abs(self.tried[v] - budget), self.tried[v]))

    def _between(self, budget: float) -> float | None:
        """A value that was not tried, between the last with too much work and the next.

        Where work rises with the value, between the last with too little and the next.
        """
        below = [v for v, work in self.tried.items() if (work > budget) != self.range.rising]
        low = max(below, default=self.range.low)
        high = min(
            (v for v in self.tried if v not in below and v >= low),
            default=self.range.high,
        )
        if self.range.whole:
            ends = [v for v in (low, high) if v not in self.tried]
            middle = ends[0] if ends else (low + high) // 2
            return None if middle in self.tried else int(middle)
        middle = math.sqrt(low * high)
        return None if middle in self.tried or high / low < 1.0005 else middle


def is_inside(part: Policy) -> bool:
    """Whether a part of a policy answers for places inside the network, alone or around another."""
    return "assign" in find_hooks(type(part))


def count_planned_calls(policies: Sequence[Policy], num_steps: int) -> float | None:
    """Calls of each branch, where one policy alone decides and knows beforehand; else None."""
    parts = flatten(policies)
    if any(map(is_inside, parts)):
        return None  # a step that is called may leave out parts of the network
    deciding = [part for part in parts if find_role(type(part)) in (Role.WHEN, Role.LIMIT)]
    planner = as_planner(deciding[0]) if len(deciding) == 1 else None
    if planner is None:
        return None
    schedule = planner.plan(num_steps)
    each = list(schedule.branches.values()) or [schedule]
    return sum(plan.calls for plan in each) / len(each)
