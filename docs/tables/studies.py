"""The tables of `erta bench study`: one question each, asked of the small trained models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from erta_bench.comparison import TO_EXACT
from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import (
    AXES,
    QUALITY_HEADINGS,
    describe_full_run,
    format_both,
    format_quality,
    read_full_run,
)

Column = Callable[[Row], str]
WITHOUT = "no reuse"
"""The run of the study `noise-scale` that reuses nothing."""


def render_study(*records: Record, columns: Mapping[str, Column]) -> str:
    """The rows of a study, a table for each model.

    Args:
        records: The records of one study, one a model.
        columns: What each column shows of a row, by its heading.
    """
    parts = []
    for record in records:
        headings = [name_model(record), *columns]
        shown = ([row["name"], *(make(row) for make in columns.values())] for row in record["rows"])
        parts += [render_table(headings, shown), describe_origin(record)]
    return "\n\n".join([describe_samples(records), *parts])


def render_factors(*records: Record) -> str:
    """The study `noise-scale`: PSNR by factor and run, a table for each model."""
    parts = []
    for record in records:
        rows = record["rows"]
        runs = list_values(rows, "name")
        # the words first, then the numbers in order; the run without reuse has no row of 1
        factors = sorted(
            list_values(rows, "factor"), key=lambda f: (f[0].isdigit() and "/" not in f, f)
        )
        for axis in AXES:
            found = {(row["factor"], row["name"]): format_quality(row, axis) for row in rows}
            if axis is TO_EXACT:  # the run without reuse and without a factor is the full run
                shared = read_full_run(record)
                found["1.00", WITHOUT] = format_quality(shared, axis)
            lines = [[each, *(found.get((each, run), "") for run in runs)] for each in factors]
            title = f"{name_model(record)}, to {axis.name}"
            parts.append(render_table([title, *runs], lines))
        parts.append(describe_origin(record))
    return "\n\n".join([describe_samples(records), *parts])


def name_model(record: Record) -> str:
    """The model of a record, and how many samples stand behind its numbers."""
    shared = record["settings"]
    return f"{shared['model']}, {shared['samples']} samples"


def describe_samples(records: Iterable[Record]) -> str:
    """What the numbers are of."""
    steps = next(iter(records))["settings"]["steps"]
    return (
        f"Held-out samples of {steps} steps from one seed set, through the own loop. PSNR in dB "
        "against the exact solution and the full run from the same noise, mean and standard "
        "deviation, and the worst sample to the exact solution."
    )


def describe_origin(record: Record) -> str:
    """How near the full run comes to the exact solution, and where the numbers are from."""
    return f"{describe_full_run(record)} {format_caption(record)}"


def list_values(rows: Iterable[Row], key: str) -> list[str]:
    """The values of a key, in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def format_share(key: str) -> Column:
    """A column of shares in percent."""
    return lambda row: f"{row[key]:.1%}"


def format_number(key: str, digits: int) -> Column:
    """A column of numbers."""
    return lambda row: f"{row[key]:.{digits}f}"


def format_text(key: str) -> Column:
    """A column of text."""
    return lambda row: str(row[key])


QUALITY: Mapping[str, Column] = {
    name: lambda row, place=place: format_both(row)[place]  # type: ignore[misc]
    for place, name in enumerate(QUALITY_HEADINGS)
}
"""PSNR to the exact solution, its worst sample, and PSNR to the full run."""
NOISE_LENGTH: Mapping[str, Column] = {
    "part of the run": format_text("part"),
    "length": format_number("length", 4),
    "best factor": format_number("factor", 4),
    "b(t)": format_number("published", 3),
    "error": format_share("error"),
    "with the best factor": format_share("left"),
}
CORRECTIONS: Mapping[str, Column] = {
    "around": format_text("group"),
    "work": format_share("work"),
    **QUALITY,
}
MODULE_TABLES: Mapping[str, Column] = {
    "work": format_share("work"),
    **QUALITY,
    "steps": format_text("table"),
}
SETTINGS_OF_METHODS: Mapping[str, Column] = {"work": format_share("work"), **QUALITY}
