"""Budgets: see the documentation."""

from erta_framework.budgets._export import exportable, exported, write_export
from erta_framework.budgets._forecast import Forecast, Planner, forecast, promise, unit_of
from erta_framework.budgets._measured_front import REMEDY, MeasuredFront, measured_units
from erta_framework.budgets._plan_front import FrontRow, front_of
from erta_framework.budgets._replay import (
    MakeSampler,
    Replays,
    ReplaySetting,
    cost_of,
    measure,
    own_loop,
    refined,
    with_steps,
)

__all__ = [
    "REMEDY",
    "Forecast",
    "FrontRow",
    "MakeSampler",
    "MeasuredFront",
    "Planner",
    "ReplaySetting",
    "Replays",
    "cost_of",
    "exportable",
    "exported",
    "forecast",
    "front_of",
    "measure",
    "measured_units",
    "own_loop",
    "promise",
    "refined",
    "unit_of",
    "with_steps",
    "write_export",
]
