"""TeaCache (arXiv 2411.19108): the output's change predicted from the first block's input."""

from erta_policies.teacache.policy import TeaCacheRule
from erta_policies.teacache.profiler import TeaCacheProfiler
from erta_policies.teacache.recipe import TeaCache
from erta_policies.teacache.schedule import TeaCacheSchedule

__all__ = ["TeaCache", "TeaCacheProfiler", "TeaCacheRule", "TeaCacheSchedule"]
