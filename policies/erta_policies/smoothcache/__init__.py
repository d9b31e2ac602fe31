"""SmoothCache (arXiv 2411.10510): attention and MLPs run at steps that a full run chose."""

from erta_policies.smoothcache._policy import SmoothCache
from erta_policies.smoothcache._profiler import SmoothCacheProfiler
from erta_policies.smoothcache._schedule import PUBLISHED, ComponentSchedule, plan_component

__all__ = [
    "PUBLISHED",
    "ComponentSchedule",
    "SmoothCache",
    "SmoothCacheProfiler",
    "plan_component",
]
