"""Schedules chosen from a profile for any budget: by dynamic programming, or by a search."""

from erta_policies.planning._costs import price_edges
from erta_policies.planning._multistep import MultistepSchedule
from erta_policies.planning._plans import plan_all_calls, plan_steps
from erta_policies.planning._schedule import PlannedSchedule
from erta_policies.shared import PlanBudget, find_cheapest_paths

__all__ = [
    "MultistepSchedule",
    "PlanBudget",
    "PlannedSchedule",
    "find_cheapest_paths",
    "plan_all_calls",
    "plan_steps",
    "price_edges",
]
