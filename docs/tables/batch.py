"""The tables of `erta bench batch`: decisions sample by sample."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import format_caption, render_table

QUALITIES = ("exact", "worst", "full run", "worst", "hard half")
"""PSNR to the exact solution and to the full run."""


def render_batch(record: Record) -> str:
    """Four ways to run a batch, for each batch and threshold, and how mixed the batch is."""
    parts = []
    for name in dict.fromkeys(row["batch"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["batch"] == name]
        alone = [row for row in rows if row["name"] == "one by one"]
        spread = ", ".join(
            f"{row['calls_min']:g} to {row['calls_max']:g} (deviation {row['calls_std']:.1f}) at "
            f"{row['threshold']:g}"
            for row in alone
        )
        parts += [
            f"### Prompts {name}",
            f"Calls of each branch that a prompt takes alone: {spread}.",
            render_table(
                ["", "threshold", "samples", "work", "calls", "speed", *QUALITIES],
                [format_mode(row, rows[0]) for row in rows],
            ),
        ]
        same = [row for row in rows if row["name"] == "per sample"]
        far = max(row["difference_to_alone"] for row in same)
        parts.append(
            f"Samples that took as many calls in the batch as alone: "
            f"{' and '.join(str(row['same_calls_as_alone']) for row in same)} of "
            f"{same[0]['prompts']}; largest difference of a value: {far:g}."
        )
    return "\n\n".join([*parts, format_caption(record)])


def format_mode(row: Row, full: Row) -> list[str]:
    """One way of running a batch; the full run is the reference.

    Every network call runs whole, so a record without work has it in the samples that ran.
    """
    reference = row["name"] == "full"
    return [
        row["name"],
        "" if reference else f"{row['threshold']:g}",
        str(row["network_samples"]),
        f"{row.get('work', row['network_samples'] / full['network_samples']):.0%}",
        f"{row['calls_mean']:.1f}",
        f"{row['processor_speedup']:.2f} x",
        *(f"{row[key]:.1f}" for key in ("psnr_fine_mean", "psnr_fine_worst")),
        *("" if reference else f"{row[key]:.1f}" for key in ("psnr_mean", "psnr_min", "psnr_hard")),
    ]
