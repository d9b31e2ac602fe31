"""The tables of the studies of FastCache: what stands in for a block, and when."""

from __future__ import annotations

from itertools import groupby

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import format_quality

RESIDUAL, WHOLE = "residual", "whole steps"
HEADINGS = ["", "work", "of the fit", "PSNR", "over residual reuse"]


def render_surrogates(record: Record) -> str:
    """Every surrogate, a table for each threshold at which residual reuse decided."""
    settings = record["settings"]
    parts = [
        f"{settings['model']}, {settings['samples']} held-out samples, fits to "
        f"{settings['calibration_prompts']} samples; PSNR in dB against the full run of "
        f"{settings['steps']} steps."
    ]
    for threshold, rows in groupby(record["rows"], lambda row: row["threshold"]):
        own = list(rows)
        base = find_residual(own)
        title = f"Decisions at {threshold:g}"
        lines = [format_surrogate(row, base) for row in own]
        parts.append(render_table([title, *HEADINGS[1:]], lines))
    return "\n\n".join([*parts, format_caption(record)])


def describe_surrogates(*records: Record) -> str:
    """What a fit gains over residual reuse, smallest and largest, in a sentence a model."""
    lines = []
    for record in records:
        gains: dict[str, list[float]] = {"ridge": [], "affine": []}
        for _, rows in groupby(record["rows"], lambda row: row["threshold"]):
            own = list(rows)
            base = find_residual(own)["psnr_mean"]
            for name, found in gains.items():
                (row,) = (row for row in own if row["name"] == name)
                found.append(row["psnr_mean"] - base)
        said = ", ".join(
            f"{name} {min(found):+.1f} to {max(found):+.1f} dB" for name, found in gains.items()
        )
        lines.append(f"- {record['settings']['model']}: {said}")
    return "\n".join(lines)


def find_residual(rows: list[Row]) -> Row:
    """The row of residual reuse among those of one threshold."""
    (found,) = (row for row in rows if row["name"] == RESIDUAL)
    return found


def format_surrogate(row: Row, base: Row) -> list[str]:
    """One row; whole steps are at equal work, not at equal decisions."""
    gain = row["psnr_mean"] - base["psnr_mean"]
    name = f"{row['name']} at that work" if row["name"] == WHOLE else row["name"]
    fit = f"{row['fit_work']:.1%}" if row["fit_work"] else "0"
    shown = "" if row is base else f"{gain:+.1f}"
    return [name, f"{row['work']:.0%}", fit, format_quality(row), shown]


def render_gates(*records: Record) -> str:
    """The tests of a block's input, each at several bounds, a table a model."""
    parts = []
    for record in records:
        settings = record["settings"]
        lines = [
            [f"{row['name']}, {row['bound']}", f"{row['work']:.0%}", format_quality(row)]
            for row in record["rows"]
        ]
        parts += [
            render_table([settings["model"], "work", "PSNR"], lines),
            format_caption(record),
        ]
    return "\n\n".join(parts)
