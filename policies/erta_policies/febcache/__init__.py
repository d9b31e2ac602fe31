"""FEB-Cache: attention and MLPs are reused at different steps, and the noise is scaled."""

from erta_policies.febcache._policy import ModuleTable
from erta_policies.febcache._profiler import FEBCacheProfiler
from erta_policies.febcache._recipe import FEBCache
from erta_policies.febcache._search import Search
from erta_policies.febcache._statistics import read_table
from erta_policies.febcache._table import PUBLISHED, State, StateTable

__all__ = [
    "PUBLISHED",
    "FEBCache",
    "FEBCacheProfiler",
    "ModuleTable",
    "Search",
    "State",
    "StateTable",
    "read_table",
]
