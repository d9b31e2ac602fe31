"""The tables of `erta bench study`: one question each, asked of the small trained models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import format_quality

Column = Callable[[Row], str]


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
        parts += [render_table(headings, shown), format_caption(record)]
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
        found = {(row["factor"], row["name"]): format_quality(row) for row in rows}
        lines = [[factor, *(found.get((factor, run), "") for run in runs)] for factor in factors]
        parts += [render_table([name_model(record), *runs], lines), format_caption(record)]
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
        "against the full run from the same noise, mean and standard deviation."
    )


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
    "PSNR": format_quality,
}
MODULE_TABLES: Mapping[str, Column] = {
    "work": format_share("work"),
    "PSNR": format_quality,
    "steps": format_text("table"),
}


def format_exact(row: Row) -> str:
    """PSNR to the exact solution with its deviation."""
    return f"{row['psnr_fine_mean']:.1f} ± {row['psnr_fine_std']:.1f}"


SETTINGS_OF_METHODS: Mapping[str, Column] = {
    "work": format_share("work"),
    "exact": format_exact,
    "worst": format_number("psnr_fine_worst", 1),
    "full run": format_quality,
}
