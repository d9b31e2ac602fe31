"""MeanCache (arXiv 2601.19961): a path over the steps, the predictors on it, and a profiler."""

from erta_policies.meancache._path import (
    EdgePath,
    find_shortest_path,
    look_up_path,
    price_edges,
    read_tables,
)
from erta_policies.meancache._profiler import MeanCacheProfiler
from erta_policies.meancache._recipe import MeanCache
from erta_policies.meancache._schedule import MeanCacheSchedule
from erta_policies.meancache._velocity import AverageVelocity, EdgeVelocity

__all__ = [
    "AverageVelocity",
    "EdgePath",
    "EdgeVelocity",
    "MeanCache",
    "MeanCacheProfiler",
    "MeanCacheSchedule",
    "find_shortest_path",
    "look_up_path",
    "price_edges",
    "read_tables",
]
