"""The tables of `erta bench fitted`: fitted reuse."""

from __future__ import annotations

from functools import partial

from tables.data import MissingDataError, Record, Row, find_command
from tables.markdown import format_caption, render_table
from tables.rows import AXES, EQUAL, QUALITY_HEADINGS, format_both, list_budgets, read_mean

FITTED_PARTS = {
    "calls": "At several numbers of network calls",
    "choices": "One setting of the fit changed at a time",
    "samples": "Numbers of calibration samples, and batches that were added up",
    "robust": "A fit on red, green and blue prompts at guidance 3, on what it has not seen",
    "solvers": "Fits for other numbers of steps, and under a solver with memory",
}

HEADINGS = ("calls", *QUALITY_HEADINGS, "worst", "gain", "calibration")


def render_fitted(record: Record) -> str:
    """Every row of the study of fitted reuse, a table a part."""
    shared = record["settings"]
    parts = [
        f"PSNR in dB against the exact solution and against the full run of {shared['steps']} "
        "steps from the same noise, mean and standard deviation over "
        f"{shared['measured']} held-out samples, and the worst of them. "
        f"Fits have {shared['fitted_samples']} samples unless said otherwise. The gain is over the "
        "same schedule under a first-order Taylor forecast; the last column is the root of the "
        "mean squared error that the fit ended with on its own calibration samples.",
        format_caption(record),
    ]
    for part, title in FITTED_PARTS.items():
        rows = [row for row in record["rows"] if row["part"] == part]
        if not rows:
            raise MissingDataError(
                f"fitted.json has no part {part!r}; write it with `{find_command('fitted')}`"
            )
        headings = [title, *HEADINGS]
        parts.append(render_table(headings, map(format_fit, rows)))
    return "\n\n".join([*parts, describe_fits(record)])


def render_fitted_on(*records: Record, model: str = "shapes-wan") -> str:
    """Rows of studies of fitted reuse on a trained model, from one or more files."""
    shared = records[0]["settings"]
    headings = [model, *HEADINGS]
    every = [format_fit(row) for record in records for row in record["rows"]]
    rows = [cells for place, cells in enumerate(every) if cells not in every[:place]]  # full runs
    said = (
        f"{shared['measured']} held-out samples, fits with {shared['fitted_samples']}; the columns "
        "are those of the tables below."
    )
    notes = [format_caption(record) for record in records]
    return "\n\n".join([said, render_table(headings, rows), *notes])


def format_fit(row: Row) -> list[str]:
    """One row; a profile that stands for a rule says so."""
    kept = row.get("kept", "fitted")
    gain, own = row["gain_mean"], row.get("fitted_error")
    return [
        row["name"] + ("" if kept == "fitted" else f" (stands for {kept} reuse)"),
        f"{row['calls']:g}",
        *format_both(row),
        "" if row["psnr_worst"] is None else f"{row['psnr_worst']:.1f}",
        "" if gain is None else f"{gain:+.1f}",
        "" if own is None else f"{own:.4f}",
    ]


def describe_fits(record: Record) -> str:
    """Where the fit is ahead of the best other row, and where it is not."""
    lines = []
    calls = [row for row in record["rows"] if row["part"] == "calls"]
    for budget in list_budgets({"rows": calls}):
        rows = [row for row in calls if row["budget"] == budget]
        ours = next(row for row in rows if row["kind"] == "ours")
        others, said = [row for row in rows if row["kind"] != "ours"], []
        for axis in AXES:
            best = max(others, key=partial(read_mean, axis=axis))
            ahead = read_mean(ours, axis) - read_mean(best, axis)
            said.append(f"to {axis.name} {ahead:+.1f} dB against the best other ({best['name']})")
        lines.append(f"* At {budget} calls: {', '.join(said)}.")
    choices = [row for row in record["rows"] if row["part"] == "choices" and row["kind"] == "ours"]
    shipped = next(row for row in choices if row["name"] == "as shipped")
    for axis in AXES:
        bound = read_mean(shipped, axis) + EQUAL
        better = [row["name"] for row in choices if read_mean(row, axis) > bound]
        lines.append(
            f"* Settings that came nearer to {axis.name} here than as shipped: "
            f"{', '.join(better) or 'none'}."
        )
    return "\n".join(lines)
