"""The tables of `erta bench policies`: all methods at equal network calls."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.comparison import TO_EXACT, Axis
from tables.data import Record, Row
from tables.markdown import escape_cell, format_caption, render_table, render_words
from tables.rows import (
    AXES,
    EQUAL,
    QUALITY_HEADINGS,
    count_samples,
    describe_full_run,
    find_full_run,
    format_both,
    list_budgets,
    read_mean,
)

POLICY_GROUPS = {
    "plain": "Fewer steps",
    "policy": "Policies",
    "combination": "Combinations",
    "other": "Other projects' caches",
}
"""Groups of rows of the comparison, in the order of the page."""


def render_policies(record: Record) -> str:
    """All methods at equal network calls: a table a number of calls and group, and what it says."""
    full = find_full_run(record)
    headings = ["", "calls", "speed-up", "efficiency", *QUALITY_HEADINGS, "SSIM"]
    headings += ["work", "bytes held", "calibration"]
    parts = [
        f"PSNR in dB against the exact solution and the full run of {full['steps']} steps, and "
        f"SSIM against the full run, mean and deviation over {count_samples(record)}. "
        f"{describe_full_run(record)} {format_caption(record)}",
        describe_policies(record),
    ]
    for budget in list_budgets(record):
        parts.append(f"### {budget} network calls")
        for group, name in POLICY_GROUPS.items():
            rows = [r for r in select_measured(record, budget) if r["group"] == group]
            if rows:
                rows.sort(key=lambda row: -read_mean(row, TO_EXACT))
                parts += [f"**{name}**", render_table(headings, map(format_policy, rows))]
    odd = [row for row in record["rows"] if row["status"] != "measured"]
    if odd:
        lines = [
            [
                row["name"],
                str(row.get("budget") or ""),
                row["status"],
                escape_cell(row.get("detail")),
            ]
            for row in odd
        ]
        parts += [
            "### Not as asked for",
            render_words(["", "Calls", "Status", "Why"], lines),
        ]
    return "\n\n".join(parts)


def select_measured(record: Record, budget: int) -> list[Row]:
    """The rows of a number of calls that have a quality."""
    rows: list[Row] = record["rows"]
    return [r for r in rows if r.get("budget") == budget and r.get("psnr_mean") is not None]


def format_policy(row: Row) -> list[str]:
    """One row of the comparison; the setting that was solved for stands under its name."""
    solved = f"<br>`{row['setting']}`" if row["setting"] else ""
    return [
        f"{row['name']}{solved}",
        f"{row['calls']:.4g}",
        f"{row['processor_speedup']:.2f} x",
        f"{row['processor_efficiency']:.2f}",
        *format_both(row),
        f"{row['ssim_mean']:.3f}",
        f"{row['work']:.0%}",
        f"{row['bytes_held']:,}",
        str(row["calibration_calls"]),
    ]


def describe_policies(record: Record) -> str:
    """The best of each group at each number of calls, among rows that kept to it."""
    lines = []
    for budget in list_budgets(record):
        rows = [r for r in select_measured(record, budget) if r["status"] == "measured"]
        lines += [describe_best(rows, budget, axis) for axis in AXES]
    full = read_mean(find_full_run(record), TO_EXACT)
    nearer = [
        f"{row['name']} at {row['budget']} ({read_mean(row, TO_EXACT):.1f} dB)"
        for budget in list_budgets(record)
        for row in select_measured(record, budget)
        if read_mean(row, TO_EXACT) > full + EQUAL
    ]
    lines.append(
        f"* Nearer to the exact solution than the full run: {', '.join(nearer) or 'none'}."
    )
    return "\n".join(lines)


def describe_best(rows: Sequence[Row], budget: int, axis: Axis) -> str:
    """The best of each group on an axis, and how many rows are behind the best fewer steps."""
    best = {}
    for group in POLICY_GROUPS:
        own = [row for row in rows if row["group"] == group]
        if own:
            best[group] = max(own, key=lambda row: read_mean(row, axis))
    said = "; ".join(
        f"{POLICY_GROUPS[group].lower()}: {row['name']} ({read_mean(row, axis):.1f} dB)"
        for group, row in best.items()
    )
    winner = max(best.values(), key=lambda row: read_mean(row, axis))
    floor = read_mean(best["plain"], axis)
    others = [row for row in rows if row["group"] != "plain"]
    below = [row for row in others if read_mean(row, axis) < floor - EQUAL]
    return (
        f"* Nearest to {axis.name} at {budget} calls: **{winner['name']}**. By group, {said}. "
        f"Farther from it than the best fewer steps: {len(below)} of {len(others)} rows."
    )
