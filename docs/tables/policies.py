"""The tables of `erta bench policies`: all methods at equal network calls."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import escape_cell, format_caption, render_table, render_words
from tables.rows import EQUAL, count_samples, find_full_run, format_quality, list_budgets

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
    headings = ["", "calls", "speed-up", "efficiency", "PSNR", "SSIM", "fine"]
    headings += ["work", "bytes held", "calibration"]
    parts = [
        f"PSNR in dB and SSIM against the full run of {full['steps']} steps, mean and deviation "
        f"over {count_samples(record)}. {format_caption(record)}",
        describe_policies(record),
    ]
    for budget in list_budgets(record):
        parts.append(f"### {budget} network calls")
        for group, name in POLICY_GROUPS.items():
            rows = [r for r in select_measured(record, budget) if r["group"] == group]
            if rows:
                rows.sort(key=lambda row: -float(row["psnr_mean"]))
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
        format_quality(row),
        f"{row['ssim_mean']:.3f}",
        f"{row['psnr_fine_mean']:.1f}",
        f"{row['work']:.0%}",
        f"{row['bytes_held']:,}",
        str(row["calibration_calls"]),
    ]


def describe_policies(record: Record) -> str:
    """The best of each group at each number of calls, among rows that kept to it."""
    lines = []
    for budget in list_budgets(record):
        rows = [r for r in select_measured(record, budget) if r["status"] == "measured"]
        best = {}
        for group in POLICY_GROUPS:
            own = [row for row in rows if row["group"] == group]
            if own:
                best[group] = max(own, key=lambda row: float(row["psnr_mean"]))
        said = "; ".join(
            f"{POLICY_GROUPS[group].lower()}: {row['name']} ({row['psnr_mean']:.1f} dB)"
            for group, row in best.items()
        )
        winner = max(best.values(), key=lambda row: float(row["psnr_mean"]))
        lines.append(f"* Best at {budget} calls: **{winner['name']}**. By group, {said}.")
        floor = float(best["plain"]["psnr_mean"])
        below = [r for r in rows if r["group"] != "plain" and float(r["psnr_mean"]) < floor - EQUAL]
        others = [row for row in rows if row["group"] != "plain"]
        lines.append(
            f"* Farther from the full run than the best fewer steps at {budget} calls: "
            f"{len(below)} of {len(others)} rows."
        )
    full = find_full_run(record)
    nearer = [
        f"{row['name']} at {row['budget']} ({row['psnr_fine_mean']:.1f} dB)"
        for budget in list_budgets(record)
        for row in select_measured(record, budget)
        if row["psnr_fine_mean"] > full["psnr_fine_mean"] + EQUAL
    ]
    lines.append(
        f"* The full run itself is {full['psnr_fine_mean']:.1f} dB from nearly exact steps. Nearer "
        f"to them than it: {', '.join(nearer) or 'none'}."
    )
    return "\n".join(lines)
