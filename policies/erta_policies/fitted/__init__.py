"""Fitted multistep reuse (ours): velocities fitted to the schedule that reuses them."""

from erta_policies.fitted._profiler import FittedProfiler
from erta_policies.fitted._recipe import FittedReuse
from erta_policies.fitted._refined import EndToEndProfiler
from erta_policies.fitted._schedule import FittedSchedule
from erta_policies.fitted._table import FittedTable
from erta_policies.fitted._velocity import FittedVelocity

__all__ = [
    "EndToEndProfiler",
    "FittedProfiler",
    "FittedReuse",
    "FittedSchedule",
    "FittedTable",
    "FittedVelocity",
]
