"""How near every caching method comes to the full run at equal network calls.

`compare_policies` measures all installed policies, combinations and other projects' caches;
`compare_peers` measures ours beside published methods, recombinations and plain solvers. A row is a
line of `contenders.py`. The package needs diffusers.
"""

from erta_bench.comparison._bench import compare_contenders, compare_policies
from erta_bench.comparison._goals import Goal, format_lead, judge_goals
from erta_bench.comparison._joining import join_records
from erta_bench.comparison._leaders import (
    CLEAR,
    KINDS,
    TO_EXACT,
    TO_FULL,
    Axis,
    Leaders,
    find_leaders,
    is_comparable,
    list_unclear,
)
from erta_bench.comparison._own_runner import OWN_LOOP
from erta_bench.comparison._peers import choose_peers, compare_peers, list_peers
from erta_bench.comparison._runner import Prepared, Runner, RunResult

__all__ = [
    "CLEAR",
    "KINDS",
    "OWN_LOOP",
    "TO_EXACT",
    "TO_FULL",
    "Axis",
    "Goal",
    "Leaders",
    "Prepared",
    "RunResult",
    "Runner",
    "choose_peers",
    "compare_contenders",
    "compare_peers",
    "compare_policies",
    "find_leaders",
    "format_lead",
    "is_comparable",
    "join_records",
    "judge_goals",
    "list_peers",
    "list_unclear",
]
