"""The tables of the studies of FastCache: what stands in for a block, and when."""

from __future__ import annotations

from itertools import groupby

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import AXES, QUALITY_HEADINGS, describe_full_run, format_both, read_mean

RESIDUAL, WHOLE = "residual", "whole steps"
HEADINGS = ["", "work", "of the fit", *QUALITY_HEADINGS, "over residual reuse, exact", "full run"]


def render_surrogates(record: Record) -> str:
    """Every surrogate, a table for each threshold at which residual reuse decided."""
    settings = record["settings"]
    parts = [
        f"{settings['model']}, {settings['samples']} held-out samples, fits to "
        f"{settings['calibration_prompts']} samples; PSNR in dB against the exact solution and the "
        f"full run of {settings['steps']} steps. {describe_full_run(record)}"
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
        for axis in AXES:
            gains: dict[str, list[float]] = {"ridge": [], "affine": []}
            for _, rows in groupby(record["rows"], lambda row: row["threshold"]):
                own = list(rows)
                base = read_mean(find_residual(own), axis)
                for name, found in gains.items():
                    (row,) = (row for row in own if row["name"] == name)
                    found.append(read_mean(row, axis) - base)
            said = ", ".join(
                f"{name} {min(found):+.1f} to {max(found):+.1f} dB" for name, found in gains.items()
            )
            lines.append(f"- {record['settings']['model']}, to {axis.name}: {said}")
    return "\n".join(lines)


def find_residual(rows: list[Row]) -> Row:
    """The row of residual reuse among those of one threshold."""
    (found,) = (row for row in rows if row["name"] == RESIDUAL)
    return found


def format_surrogate(row: Row, base: Row) -> list[str]:
    """One row; whole steps are at equal work, not at equal decisions."""
    gains = [f"{read_mean(row, axis) - read_mean(base, axis):+.1f}" for axis in AXES]
    name = f"{row['name']} at that work" if row["name"] == WHOLE else row["name"]
    fit = f"{row['fit_work']:.1%}" if row["fit_work"] else "0"
    shown = ["", ""] if row is base else gains
    return [name, f"{row['work']:.0%}", fit, *format_both(row), *shown]


def render_gates(*records: Record) -> str:
    """The tests of a block's input, each at several bounds, a table a model."""
    parts = []
    for record in records:
        settings = record["settings"]
        lines = [
            [f"{row['name']}, {row['bound']}", f"{row['work']:.0%}", *format_both(row)]
            for row in record["rows"]
        ]
        parts += [
            render_table([settings["model"], "work", *QUALITY_HEADINGS], lines),
            f"{describe_full_run(record)} {format_caption(record)}",
        ]
    return "\n\n".join(parts)
