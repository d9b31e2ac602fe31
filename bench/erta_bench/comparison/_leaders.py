"""Which row leads at equal work, in network calls, and by how much."""

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
    "oracle": "Oracle",
}
"""The kinds of rows, with their headings, in the order of a page."""
GOALS: Mapping[int, float] = {25: 6.0, 17: 10.0, 12: 12.0}
"""The lead in dB that our best row aims at, over the best peer and the best plain row, by calls."""
EFFICIENCY = 0.98
"""The measured speed-up over steps per call that our best row aims at."""
NEAR = 1.0
"""A row may be this many calls off the number that was asked for, and still counts as measured."""


@dataclass(frozen=True, slots=True)
class Leaders:
    """The best row of each kind at one number of calls.

    Attributes:
        budget: Network calls of each branch.
        best: The best row of each kind that has one.
        goal: The lead aimed at, in dB; None where none is.
    """

    budget: int
    best: Mapping[str, Record]
    goal: float | None

    def lead(self, over: str) -> float | None:
        """PSNR of our best row less that of another kind's best, in dB; None without both."""
        if "ours" not in self.best or over not in self.best:
            return None
        ours, theirs = self.best["ours"], self.best[over]
        return float(ours["psnr_mean"]) - float(theirs["psnr_mean"])

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached over peers and plain rows alike; None without a goal."""
        leads = [self.lead("peer"), self.lead("plain")]
        if self.goal is None or None in leads:
            return None
        return all(lead is not None and lead >= self.goal for lead in leads)


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


def find_leaders(rows: Sequence[Record]) -> list[Leaders]:
    """The best rows at each number of calls, most calls first.

    Args:
        rows: Flat records of `erta bench peers`, that of the full run among them.
    """
    steps = int(next(row for row in rows if row.get("budget") is None)["steps"])
    budgets = sorted({int(row["budget"]) for row in rows if row.get("budget")}, reverse=True)
    found = []
    for budget in budgets:
        best: dict[str, Record] = {}
        for row in rows:
            if row.get("budget") != budget or not is_comparable(row, steps):
                continue
            kind = str(row["kind"])
            if kind not in best or row["psnr_mean"] > best[kind]["psnr_mean"]:
                best[kind] = row
        found.append(Leaders(budget, best, GOALS.get(budget)))
    return found
