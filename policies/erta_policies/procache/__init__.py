"""ProCache (arXiv 2512.17298): plans with shrinking gaps, and deep tokens refreshed between."""

from erta_policies.procache._policy import ProCache
from erta_policies.procache._presets import PRESETS, Preset, plan_toca
from erta_policies.procache._profiler import ProCacheProfiler
from erta_policies.procache._ratio import TokenRatio

__all__ = ["PRESETS", "Preset", "ProCache", "ProCacheProfiler", "TokenRatio", "plan_toca"]
