"""What several policies share: signals of change and their sums. No policy imports another."""

from erta_policies.parts.accumulator import Accumulator
from erta_policies.parts.decisions import below
from erta_policies.parts.fixed import FixedSchedule
from erta_policies.parts.leaders import Leaders
from erta_policies.parts.signals import mean_magnitude, relative_l1

__all__ = [
    "Accumulator",
    "FixedSchedule",
    "Leaders",
    "below",
    "mean_magnitude",
    "relative_l1",
]
