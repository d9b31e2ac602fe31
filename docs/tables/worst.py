"""The tables of the study `worst-samples`: what the flow amplifies, and who gets it wrong."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.studies import name_model

SAMPLES = "samples"
"""The group of the rows that are single samples."""
HEADINGS = (
    "calls",
    "mean",
    "worst",
    "which",
    "amplified as",
    "correlation",
    "with the full run",
    "if all alike",
)


def render_worst(*records: Record) -> str:
    """Every method with its worst sample, a table a model."""
    parts = []
    for record in records:
        methods, samples = split_rows(record)
        lines = [format_method(row, len(samples)) for row in methods]
        parts += [render_table([name_model(record), *HEADINGS], lines), format_caption(record)]
    return "\n\n".join(parts)


def describe_worst(*records: Record) -> str:
    """How differently a flow amplifies, and what errors of the first steps do, a line a model."""
    return "\n".join(f"* {describe_model(record)}" for record in records)


def describe_model(record: Record) -> str:
    """What one record says of its samples."""
    methods, samples = split_rows(record)
    full, *_, ours = methods
    sizes = [row["amplification_25%"] for row in samples]
    explained = " and ".join(f"{row['explained']:.0%} ({row['name']})" for row in (full, ours))
    early = "; ".join(
        f"{row['name']} {row['early_mean']:.1f} dB in the mean, {row['early_worst']:.1f} dB in its "
        "worst sample"
        for row in methods
        if "early_mean" in row
    )
    return (
        f"{name_model(record)}: a difference after a quarter of the steps becomes "
        f"{median(sizes):.1f} times as long until the end in the median, {min(sizes):.1f} to "
        f"{max(sizes):.1f} times in all. It explains "
        f"{explained} of the variance of PSNR. The error made in this quarter alone: {early}."
    )


def format_method(row: Row, samples: int) -> list[str]:
    """One method."""
    return [
        row["name"],
        str(row["calls"]),
        f"{row['psnr_fine_mean']:.1f} ± {row['psnr_fine_std']:.1f}",
        f"{row['psnr_fine_worst']:.1f}",
        str(row["worst_sample"]),
        f"{row['worst_rank']} of {samples}",
        f"{row['correlation_25%']:.2f}",
        f"{row['correlation_full']:.2f}",
        f"{row['worst_alike']:.1f}",
    ]


def split_rows(record: Record) -> tuple[list[Row], list[Row]]:
    """The rows of methods, the full run first, and those of single samples."""
    rows: Iterable[Row] = record["rows"]
    methods = [row for row in rows if row["group"] != SAMPLES]
    return methods, [row for row in rows if row["group"] == SAMPLES]
