"""What a profile of FEB-Cache holds, and the table that follows from it.

Sums over the rows of the calibration batches, a row being a sample in one guidance branch, with T
steps:

| name | shape | sum of |
|---|---|---|
| `rows` | `[T]` | 1, at steps that were decided |
| `both` | `[T]` | 1 where reusing both was close enough |
| `one` | `[T]` | 1 where reusing both, or the single candidate, was close enough |
| `error` | `[T]` | the error of reusing both |
| `calls` | `[1]` | 1 for each batch |
| `shares` | `[3]` | shares of a network call: attention, MLPs, both |
| `late` | `[T]` | 1 for each batch where the single candidate reuses the attention |
"""

from __future__ import annotations

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_policies.febcache._table import ATTENTION, BOTH, MLP, NONE, State, StateTable

COUNTS = Entry(shape="T", counts=True)
KIND = ProfileKind(
    "febcache_profiler",
    {
        "rows": COUNTS,
        "both": COUNTS,
        "one": COUNTS,
        "error": Entry(shape="T"),
        "calls": Entry(shape="1", least=1.0, counts=True),
        "shares": Entry(shape="3"),
        "late": Entry(shape="T", counts=True),
    },
)


def choose_state(rows: float, both: float, one: float, late: bool) -> State:
    """The cheapest state that at least half of the rows accept.

    Example:
        >>> choose_state(8, both=3, one=4, late=False), choose_state(8, both=3, one=3, late=True)
        ('M', 'N')
    """
    if rows == 0:
        return NONE
    if 2 * both >= rows:
        return BOTH
    if 2 * one >= rows:
        return ATTENTION if late else MLP
    return NONE


def read_table(profile: Profile) -> StateTable:
    """The table that the rows of a profile voted for."""
    found = {name: profile.statistics[name].tolist() for name in ("rows", "both", "one", "late")}
    votes = zip(found["rows"], found["both"], found["one"], found["late"], strict=True)
    return StateTable("".join(choose_state(n, b, o, late > 0) for n, b, o, late in votes))


def find_table_work(profile: Profile) -> float:
    """The work of a run under this table, as a part of the full one."""
    attention, mlp, both = (profile.statistics["shares"] / profile.statistics["calls"]).tolist()
    return read_table(profile).find_work(attention, mlp, both)


def find_least_work(profile: Profile) -> float:
    """The work that is left where both are reused at every step but the first."""
    steps = profile.num_steps
    both = float(profile.statistics["shares"][2] / profile.statistics["calls"][0])
    return 1.0 - both * (steps - 1) / steps
