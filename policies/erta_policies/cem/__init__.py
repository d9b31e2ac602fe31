"""CEM (arXiv 2512.23258): computed steps planned from how much outputs change over a gap."""

from erta_policies.cem._plan import plan_gaps
from erta_policies.cem._policy import CEM
from erta_policies.cem._profiler import CEMProfiler

__all__ = ["CEM", "CEMProfiler", "plan_gaps"]
