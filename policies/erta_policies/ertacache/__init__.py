"""ERTACache (arXiv 2508.21091) as four parts, a recipe over them, and their profilers."""

from erta_policies.ertacache._adjuster import TimestepAdjuster
from erta_policies.ertacache._linearizer import ErrorLinearizer
from erta_policies.ertacache._predictions import errors_on_arrival, predict_errors
from erta_policies.ertacache._predictor import ResidualReuse
from erta_policies.ertacache._profiler import ResidualProfiler
from erta_policies.ertacache._recipe import ERTACache
from erta_policies.ertacache._replay import ReplayProfiler
from erta_policies.ertacache._schedule import solve_threshold, spread_evenly, walk
from erta_policies.ertacache._skip import SkipPolicy
from erta_policies.ertacache._statistics import (
    KIND,
    Signal,
    affine_fit,
    average_samples,
    combine_branches,
    find_present_pairs,
    pair_errors,
)

__all__ = [
    "KIND",
    "ERTACache",
    "ErrorLinearizer",
    "ReplayProfiler",
    "ResidualProfiler",
    "ResidualReuse",
    "Signal",
    "SkipPolicy",
    "TimestepAdjuster",
    "affine_fit",
    "average_samples",
    "combine_branches",
    "errors_on_arrival",
    "find_present_pairs",
    "pair_errors",
    "predict_errors",
    "solve_threshold",
    "spread_evenly",
    "walk",
]
