"""Which row leads at equal work, in network calls, and by how much, on two axes.

Rows are compared with the exact solution first. The full run is a solver with an error of its own:
who comes near to it has its error too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

KINDS: Mapping[str, str] = {
    "ours": "Ours",
    "peer": "Published methods and other projects' caches",
    "composed": "Recombined parts of published methods",
    "plain": "Fewer steps, nothing cached",
    "oracle": "Fitted to what is measured",
}
"""The kinds of rows, with their headings, in the order of a page."""
NEAR = 1.0
"""A row may be this many calls off the number that was asked for, and still counts as measured."""
CLEAR = 6.0
"""A distance to the exact solution says something if it is this many dB above its own error."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What rows are compared with, and the keys of their distances to it, in dB.

    Attributes:
        name: What it is.
        mean, std, worst: Keys of the mean, the deviation, and the worst sample.
    """

    name: str
    mean: str
    std: str
    worst: str


TO_EXACT = Axis("the exact solution", "psnr_fine_mean", "psnr_fine_std", "psnr_fine_worst")
TO_FULL = Axis("the full run", "psnr_mean", "psnr_std", "psnr_worst")


@dataclass(frozen=True, slots=True)
class Leaders:
    """The best row of each kind at one number of calls, on one axis.

    Attributes:
        budget: Network calls of each branch.
        axis: What the rows are compared with.
        best: The row of each kind with the best mean.
        safest: The row of each kind with the best worst sample; of records that hold them.
    """

    budget: int
    axis: Axis
    best: Mapping[str, Record]
    safest: Mapping[str, Record]

    def lead(self, over: str) -> float | None:
        """Mean of our best row less that of another kind's best, in dB; None without both."""
        if "ours" not in self.best or over not in self.best:
            return None
        key = self.axis.mean
        return float(self.best["ours"][key]) - float(self.best[over][key])

    def lead_worst(self, over: str) -> float | None:
        """The worst sample of our best row less the best one of another kind; None without both."""
        ours = self.best.get("ours", {}).get(self.axis.worst)
        if ours is None or over not in self.safest:
            return None
        return float(ours) - float(self.safest[over][self.axis.worst])


def is_comparable(row: Record, steps: int) -> bool:
    """Whether a row kept to the work that was asked for, in network calls: at most one call more.

    Rows that were solved for calls, as older records have them, are judged by those.

    Example:
        >>> is_comparable({"psnr_mean": 40.0, "budget": 25, "calls": 25.5, "equal": "calls"}, 50)
        True
        >>> is_comparable({"psnr_mean": 40.0, "budget": 25, "calls": 28, "equal": "calls"}, 50)
        False
    """
    if row.get("psnr_mean") is None or not row.get("budget"):
        return False
    made = steps * float(row["work"]) if row.get("equal") == "work" else float(row["calls"])
    return made <= float(row["budget"]) + NEAR


def find_leaders(rows: Sequence[Record], axis: Axis = TO_EXACT) -> list[Leaders]:
    """The best rows at each number of calls, most calls first.

    Args:
        rows: Flat records of `erta bench peers`, that of the full run among them.
        axis: What they are compared with.
    """
    steps = int(next(row for row in rows if row.get("budget") is None)["steps"])
    budgets = sorted({int(row["budget"]) for row in rows if row.get("budget")}, reverse=True)
    found = []
    for budget in budgets:
        own = [row for row in rows if row.get("budget") == budget and is_comparable(row, steps)]
        best, safest = find_best(own, axis.mean), find_best(own, axis.worst)
        found.append(Leaders(budget, axis, best, safest))
    return found


def find_best(rows: Sequence[Record], key: str) -> dict[str, Record]:
    """The row of each kind whose value of a key is the largest, of those that have one."""
    best: dict[str, Record] = {}
    for row in rows:
        if row.get(key) is None:
            continue
        kind = str(row["kind"])
        if kind not in best or row[key] > best[kind][key]:
            best[kind] = row
    return best


def list_unclear(record: Record) -> list[Record]:
    """Rows that are about as near to the exact solution as that is known itself.

    Args:
        record: What `erta bench peers --json` writes. Older ones do not say how exact it is.
    """
    known = record["settings"].get("solution_psnr")
    if known is None:
        return []
    rows = [row for row in record["rows"] if row.get(TO_EXACT.mean) is not None]
    return [row for row in rows if row[TO_EXACT.mean] > known - CLEAR]
