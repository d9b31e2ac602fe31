"""How near every caching method comes to the full run at equal network calls.

`compare_policies` measures all installed policies, combinations and other projects' caches;
`compare_peers` measures ours beside published methods, recombinations and plain solvers. A row is a
line of `contenders.py`. The package needs diffusers.
"""

from erta_bench.comparison._bench import compare_contenders, compare_policies
from erta_bench.comparison._leaders import (
    EFFICIENCY,
    GOALS,
    KINDS,
    Leaders,
    find_leaders,
    is_comparable,
)
from erta_bench.comparison._peers import compare_peers, join_records, list_peers
from erta_bench.comparison._runner import Prepared, Runner, RunResult

__all__ = [
    "EFFICIENCY",
    "GOALS",
    "KINDS",
    "Leaders",
    "Prepared",
    "RunResult",
    "Runner",
    "compare_contenders",
    "compare_peers",
    "compare_policies",
    "find_leaders",
    "is_comparable",
    "join_records",
    "list_peers",
]
