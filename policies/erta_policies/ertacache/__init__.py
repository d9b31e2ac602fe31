"""ERTACache (arXiv 2508.21091) as four parts, a recipe over them, and their profilers."""

from erta_policies.ertacache.adjuster import TimestepAdjuster
from erta_policies.ertacache.linearizer import ErrorLinearizer
from erta_policies.ertacache.predictor import ResidualReuse
from erta_policies.ertacache.profiler import ResidualProfiler
from erta_policies.ertacache.recipe import ERTACache
from erta_policies.ertacache.replay import ReplayProfiler
from erta_policies.ertacache.skip import SkipPolicy

__all__ = [
    "ERTACache",
    "ErrorLinearizer",
    "ReplayProfiler",
    "ResidualProfiler",
    "ResidualReuse",
    "SkipPolicy",
    "TimestepAdjuster",
]
