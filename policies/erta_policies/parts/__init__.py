"""What several policies share: signals of change and their sums. No policy imports another."""

from erta_framework.metrics import mean_magnitude, relative_l1
from erta_policies.parts.accumulator import Accumulator
from erta_policies.parts.decisions import below
from erta_policies.parts.fixed import FixedSchedule, StepPlan
from erta_policies.parts.leaders import Leaders

__all__ = [
    "Accumulator",
    "FixedSchedule",
    "Leaders",
    "StepPlan",
    "below",
    "mean_magnitude",
    "relative_l1",
]
