"""MagCache (arXiv 2506.09045): schedules from tables of magnitude ratios."""

from erta_policies.magcache._listing import list_ratios
from erta_policies.magcache._policy import MagCache
from erta_policies.magcache._profiler import MagCacheProfiler

__all__ = ["MagCache", "MagCacheProfiler", "list_ratios"]
