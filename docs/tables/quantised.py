"""The table of the study of quantised layers."""

from __future__ import annotations

from tables.data import Record
from tables.markdown import format_caption, render_table


def render_layers(record: Record) -> str:
    """Errors of one quantised layer, a column for each kind of inputs."""
    found: dict[str, list[str]] = {}
    inputs: dict[str, None] = {}
    for row in record["rows"]:
        inputs[row["inputs"]] = None
        found.setdefault(row["name"], []).append(f"{row['before']:.4f} → {row['after']:.4f}")
    lines = [[name, *cells] for name, cells in found.items()]
    return "\n\n".join([render_table(["", *inputs], lines), format_caption(record)])
