"""Schedules chosen from a profile for any budget: by dynamic programming, or by a search."""

from erta_policies.parts.budgets import PlanBudget
from erta_policies.parts.paths import find_cheapest_paths
from erta_policies.planning.costs import price_edges
from erta_policies.planning.multistep import MultistepSchedule
from erta_policies.planning.plans import plan_all_calls, plan_steps
from erta_policies.planning.schedule import PlannedSchedule

__all__ = [
    "MultistepSchedule",
    "PlanBudget",
    "PlannedSchedule",
    "find_cheapest_paths",
    "plan_all_calls",
    "plan_steps",
    "price_edges",
]
