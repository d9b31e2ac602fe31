"""The table of the rules that `erta.enable` chooses from where a model has no constants."""

from __future__ import annotations

from tables.data import Record
from tables.markdown import format_caption, render_table

RULES = (
    "uniform + line",
    "TaylorSeer, whole output",
    "no profile: steps counted from the end + line",
)
"""Rows of `erta bench peers`."""


def render_chosen(*records: Record) -> str:
    """PSNR of the rules on both axes, by network calls and model."""
    budgets = sorted(
        {row["budget"] for record in records for row in record["rows"] if row["budget"]}
    )
    models = [record["settings"]["model"] for record in records]
    lines = [
        [rule, str(budget), *(find_quality(record, rule, budget) for record in records)]
        for rule in RULES
        for budget in reversed(budgets)
    ]
    said = (
        "Mean PSNR in dB against the exact solution / against the full run. "
        f"{format_caption(records[0])}"
    )
    return "\n\n".join([render_table(["Rule", "calls", *models], lines), said])


def find_quality(record: Record, rule: str, budget: int) -> str:
    """PSNRs of a rule at a number of calls, and the calls that it made if they were others."""
    for row in record["rows"]:
        if (row["name"], row["budget"]) == (rule, budget) and row.get("psnr_mean") is not None:
            made = "" if round(row["calls"]) == budget else f" ({row['calls']:.3g} calls)"
            return f"{row['psnr_fine_mean']:.1f} / {row['psnr_mean']:.1f}{made}"
    return "–"
