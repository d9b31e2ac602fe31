"""TeaCache (arXiv 2411.19108): the output's change predicted from the first block's input."""

from erta_policies.teacache._profiler import TeaCacheProfiler
from erta_policies.teacache._recipe import TeaCache
from erta_policies.teacache._rule import TeaCacheRule
from erta_policies.teacache._schedule import TeaCacheSchedule

__all__ = ["TeaCache", "TeaCacheProfiler", "TeaCacheRule", "TeaCacheSchedule"]
