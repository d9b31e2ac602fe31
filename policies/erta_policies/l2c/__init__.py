"""L2C (arXiv 2406.01733) without training: which modules rest in every second step."""

from erta_policies.l2c._choice import choose_resting
from erta_policies.l2c._policy import L2C
from erta_policies.l2c._profiler import L2CProfiler

__all__ = ["L2C", "L2CProfiler", "choose_resting"]
