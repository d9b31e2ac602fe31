"""MeanCache (arXiv 2601.19961): a path over the steps, what stands in on it, and a profiler."""

from erta_policies.meancache.path import (
    EdgePath,
    find_shortest_path,
    look_up_path,
    price_edges,
    read_tables,
)
from erta_policies.meancache.profiler import MeanCacheProfiler
from erta_policies.meancache.recipe import MeanCache
from erta_policies.meancache.schedule import MeanCacheSchedule
from erta_policies.meancache.velocity import AverageVelocity, EdgeVelocity

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
