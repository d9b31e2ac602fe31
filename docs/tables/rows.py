"""What the rows of a record have in common: numbers of calls, the full run, quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erta_bench.comparison import TO_EXACT, TO_FULL, Axis
from tables.data import Record, Row
from tables.markdown import join_numbers

EQUAL = 0.05
"""Differences in dB that are no difference when they are shown."""
DASH = "–"
"""Stands where a record does not hold a number; those of older versions lack some."""
AXES = (TO_EXACT, TO_FULL)
"""The exact solution comes first, see `explanation/performance.md`."""
QUALITY_HEADINGS = ("exact", "worst", "full run")
"""Above what `format_both` makes."""


def list_budgets(record: Record) -> list[int]:
    """The numbers of network calls that were compared, largest first."""
    found = {row["budget"] for row in record["rows"] if row.get("budget") is not None}
    return sorted(found, reverse=True)


def find_full_run(record: Record) -> Row:
    """The row of the full run, the reference of all others."""
    (row,) = (row for row in record["rows"] if row.get("budget") is None)
    found: Row = row
    return found


def count_samples(record: Record, noun: str = "prompts") -> str:
    """How many samples stand behind a number."""
    row = find_full_run(record)
    sets = "seed set" if row["seeds"] == 1 else "seed sets"
    return f"{row['prompts']} held-out {noun} × {row['seeds']} {sets}"


def read_mean(row: Row, axis: Axis) -> float:
    """The mean PSNR of a row on an axis."""
    return float(row[axis.mean])


def format_quality(row: Row, axis: Axis = TO_FULL) -> str:
    """PSNR with its deviation; nothing where the samples equal what they are compared with."""
    return "" if row[axis.mean] is None else format_distance(row, axis)[0]


def format_both(row: Row) -> tuple[str, str, str]:
    """PSNR to the exact solution, its worst sample, and PSNR to the full run."""
    exact, worst = format_distance(row, TO_EXACT)
    return exact, worst, format_quality(row)


def format_distance(row: Mapping[str, Any], axis: Axis) -> list[str]:
    """Mean with its deviation, and worst sample; a dash for what an older record does not hold."""
    mean, std, worst = (row.get(key) for key in (axis.mean, axis.std, axis.worst))
    if mean is None:
        return [DASH, DASH]
    spread = "" if std is None else f" ± {std:.1f}"
    return [f"{mean:.1f}{spread}", DASH if worst is None else f"{worst:.1f}"]


def read_full_run(record: Record) -> Row:
    """The full run's own distances: those of its row, or of the settings where it has no row."""
    shared = {k.removeprefix("full_run."): v for k, v in record["settings"].items()}
    return shared if TO_EXACT.mean in shared else find_full_run(record)


def describe_full_run(record: Record) -> str:
    """How near the full run itself comes to the exact solution."""
    row = read_full_run(record)
    said = f"The full run itself is {read_mean(row, TO_EXACT):.1f} dB from the exact solution"
    worst = row.get(TO_EXACT.worst)
    return f"{said}." if worst is None else f"{said}, its worst sample {worst:.1f} dB."


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


def format_gaps(gaps: Mapping[int, float]) -> str:
    """A judgement, and the differences in dB that it follows from."""
    return f"**{judge_gaps(gaps)}** ({' / '.join(f'{gap:+.1f}' for gap in gaps.values())} dB)"
