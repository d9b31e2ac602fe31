"""The tables of the studies of quantised networks and of quantised layers."""

from __future__ import annotations

from itertools import groupby

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import QUALITY_HEADINGS, describe_full_run, format_both


def render_quantised(record: Record) -> str:
    """A table for each way to hold the weights, with and without the cache."""
    shared = record["settings"]
    parts = [
        f"{shared['model']}, {shared['steps']} steps, {shared['samples']} held-out samples: PSNR "
        "in dB against the exact solution and the full run of the network as it was trained; work "
        "and bytes of all weights as shares of that run's, and processor time as a speed-up over "
        f"it. {describe_full_run(record)}"
    ]
    headings = ["", "N", *QUALITY_HEADINGS, "work", "bytes of weights", "speed-up here"]
    for weights, rows in groupby(record["rows"], key=lambda row: str(row["weights"])):
        parts += [f"**Weights: {weights}**", render_table(headings, map(format_row, rows))]
    return "\n\n".join([*parts, format_caption(record)])


def format_row(row: Row) -> list[str]:
    """One row; the full run has no PSNR to itself."""
    return [
        row["name"],
        "" if row["interval"] is None else str(row["interval"]),
        *format_both(row),
        f"{row['work']:.0%}",
        f"{row['bytes']:.0%}",
        f"{row['processor_speedup']:.2f} x",
    ]


def render_layers(record: Record) -> str:
    """Errors of one quantised layer, a column for each kind of inputs."""
    found: dict[str, list[str]] = {}
    inputs: dict[str, None] = {}
    for row in record["rows"]:
        inputs[row["inputs"]] = None
        found.setdefault(row["name"], []).append(f"{row['before']:.4f} → {row['after']:.4f}")
    lines = [[name, *cells] for name, cells in found.items()]
    return "\n\n".join([render_table(["", *inputs], lines), format_caption(record)])
