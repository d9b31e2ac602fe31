"""Budgets first: schedules chosen by dynamic programming from a profile, for any budget."""

from erta_policies.planning.costs import edges
from erta_policies.planning.multistep import MultistepSchedule
from erta_policies.planning.plans import front, planned_steps
from erta_policies.planning.schedule import PlannedSchedule
from erta_policies.shared import Path, PlanBudget, cheapest

__all__ = [
    "MultistepSchedule",
    "Path",
    "PlanBudget",
    "PlannedSchedule",
    "cheapest",
    "edges",
    "front",
    "planned_steps",
]
