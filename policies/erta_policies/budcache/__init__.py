"""BudCache (ICML 2026): computed steps found by annealing and hill climbing on whole runs."""

from erta_policies.budcache._policy import BudCache
from erta_policies.budcache._profiler import BudCacheProfiler
from erta_policies.budcache._search import Search, search_steps

__all__ = ["BudCache", "BudCacheProfiler", "Search", "search_steps"]
