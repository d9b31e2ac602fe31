"""Fitted multistep reuse (ours): velocities fitted to the schedule that reuses them."""

from erta_policies.fitted.profiler import FittedProfiler
from erta_policies.fitted.recipe import FittedReuse
from erta_policies.fitted.schedule import FittedSchedule
from erta_policies.fitted.velocity import FittedVelocity

__all__ = ["FittedProfiler", "FittedReuse", "FittedSchedule", "FittedVelocity"]
