"""The table of the rules that `erta.enable` chooses from where a model has no constants."""

from __future__ import annotations

from erta_bench.comparison import TO_EXACT, TO_FULL
from tables.data import Record
from tables.markdown import format_caption, render_table

RULES = (
    "uniform + line",
    "TaylorSeer, whole output",
    "no profile: steps counted from the end + line",
)
"""Rows of `erta bench peers`."""


def render_chosen(*records: Record) -> str:
    """PSNR of both rules to the full run and to the exact solution, by network calls and model."""
    budgets = sorted(
        {row["budget"] for record in records for row in record["rows"] if row["budget"]}
    )
    models = [record["settings"]["model"] for record in records]
    lines = [
        [rule, str(budget), *(find_quality(record, rule, budget) for record in records)]
        for rule in RULES
        for budget in reversed(budgets)
    ]
    said = f"Mean PSNR in dB to the full run / to the exact solution. {format_caption(records[0])}"
    return "\n\n".join([render_table(["Rule", "calls", *models], lines), said])


def find_quality(record: Record, rule: str, budget: int) -> str:
    """PSNR of a rule on both axes, and the calls that it made if they were others than asked."""
    for row in record["rows"]:
        if (row["name"], row["budget"]) == (rule, budget) and row.get("psnr_mean") is not None:
            made = "" if round(row["calls"]) == budget else f" ({row['calls']:.3g} calls)"
            return f"{row[TO_FULL.mean]:.1f} / {row[TO_EXACT.mean]:.1f}{made}"
    return "–"
