"""Schedules that are known before sampling, and budgets: planned, measured by replays, exported.

A `Planner` is a policy that says which steps it computes, as a `StepSchedule`. `forecast` asks it,
`plan_front` compares all budgets, `measure` replays plans and keeps what they cost and gave in a
profile as a `MeasuredFront`.
"""

from erta_framework.budgets._asked_calls import count_asked_calls
from erta_framework.budgets._export import export_schedule, plan_export, write_export
from erta_framework.budgets._forecast import explain_shortfall, forecast, promise
from erta_framework.budgets._listed_steps import ListedSteps, with_steps
from erta_framework.budgets._measured_front import MeasuredFront, list_measured_units
from erta_framework.budgets._measured_tables import REMEDY
from erta_framework.budgets._plan_front import FrontRow, plan_front
from erta_framework.budgets._planner import Planner, as_planner, find_planner, with_calls
from erta_framework.budgets._replay import (
    MakeSampler,
    Replays,
    ReplaySetting,
    count_replay_calls,
    measure,
    own_loop,
)
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.budgets._tier import Tier, plan_tier

__all__ = [
    "REMEDY",
    "FrontRow",
    "ListedSteps",
    "MakeSampler",
    "MeasuredFront",
    "Planner",
    "ReplaySetting",
    "Replays",
    "StepSchedule",
    "Tier",
    "as_planner",
    "count_asked_calls",
    "count_replay_calls",
    "explain_shortfall",
    "export_schedule",
    "find_planner",
    "forecast",
    "list_measured_units",
    "measure",
    "own_loop",
    "plan_export",
    "plan_front",
    "plan_tier",
    "promise",
    "with_calls",
    "with_steps",
    "write_export",
]
