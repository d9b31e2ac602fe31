"""What the rows of a record have in common: numbers of calls, the full run, quality."""

from __future__ import annotations

from collections.abc import Mapping

from tables.data import Record, Row
from tables.markdown import join_numbers

EQUAL = 0.05
"""Differences in dB that are no difference when they are shown."""


def list_budgets(record: Record) -> list[int]:
    """The numbers of network calls that were compared, largest first."""
    found = {row["budget"] for row in record["rows"] if row.get("budget") is not None}
    return sorted(found, reverse=True)


def find_full_run(record: Record) -> Row:
    """The row of the full run, the reference of all others."""
    (row,) = (row for row in record["rows"] if row.get("budget") is None)
    found: Row = row
    return found


def count_samples(record: Record) -> str:
    """How many samples stand behind a number."""
    row = find_full_run(record)
    sets = "seed set" if row["seeds"] == 1 else "seed sets"
    return f"{row['prompts']} held-out prompts × {row['seeds']} {sets}"


def format_quality(row: Row) -> str:
    """PSNR with its deviation."""
    return f"{row['psnr_mean']:.1f} ± {row['psnr_std']:.1f}"


def format_work(row: Row, full: Row) -> str:
    """Work as a share of the full run's.

    Older records do not hold it. Their rows leave out whole steps only, so that every call that was
    made is a whole one, and work equals calls exactly.
    """
    work = row["calls"] / full["calls"] if row.get("work") is None else row["work"]
    return f"{work:.0%}"


def judge_gaps(gaps: Mapping[int, float]) -> str:
    """Better, worse or neither, and where."""
    better = [budget for budget, value in gaps.items() if value > EQUAL]
    worse = [budget for budget, value in gaps.items() if value < -EQUAL]
    if not better and not worse:
        return "no difference"
    if len(better) == len(gaps) or len(worse) == len(gaps):
        return "better" if better else "worse"
    said = [("better", better), ("worse", worse)]
    return ", ".join(f"{word} at {join_numbers(where)}" for word, where in said if where)
