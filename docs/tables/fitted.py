"""The tables of `erta bench fitted`: fitted reuse."""

from __future__ import annotations

from tables.data import MissingDataError, Record, Row, find_command
from tables.markdown import format_caption, render_table
from tables.rows import EQUAL, format_quality, list_budgets

FITTED_PARTS = {
    "calls": "At several numbers of network calls",
    "choices": "One setting of the fit changed at a time",
    "samples": "Numbers of calibration samples, and batches that were added up",
    "robust": "A fit on red, green and blue prompts at guidance 3, on what it has not seen",
    "solvers": "Fits for other numbers of steps, and under a solver with memory",
}


def render_fitted(record: Record) -> str:
    """Every row of the study of fitted reuse, a table a part."""
    shared = record["settings"]
    parts = [
        f"PSNR in dB against the full run of {shared['steps']} steps from the same noise, mean and "
        f"standard deviation over {shared['measured']} held-out samples, and the worst of them. "
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
        headings = [title, "calls", "PSNR", "worst", "gain", "calibration"]
        parts.append(render_table(headings, map(format_fit, rows)))
    return "\n\n".join([*parts, describe_fits(record)])


def render_fitted_on(*records: Record, model: str = "shapes-wan") -> str:
    """Rows of studies of fitted reuse on a trained model, from one or more files."""
    shared = records[0]["settings"]
    headings = [model, "calls", "PSNR", "worst", "gain", "calibration"]
    rows = [row for record in records for row in record["rows"]]
    said = (
        f"{shared['measured']} held-out samples, fits with {shared['fitted_samples']}; the columns "
        "are those of the tables below."
    )
    notes = [format_caption(record) for record in records]
    return "\n\n".join([said, render_table(headings, map(format_fit, rows)), *notes])


def format_fit(row: Row) -> list[str]:
    """One row; a profile that stands for a rule says so."""
    kept = row.get("kept", "fitted")
    gain, own = row["gain_mean"], row.get("fitted_error")
    return [
        row["name"] + ("" if kept == "fitted" else f" (stands for {kept} reuse)"),
        f"{row['calls']:g}",
        format_quality(row),
        f"{row['psnr_worst']:.1f}",
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
        best = max(
            (row for row in rows if row["kind"] != "ours"), key=lambda r: float(r["psnr_mean"])
        )
        ahead = float(ours["psnr_mean"]) - float(best["psnr_mean"])
        lines.append(
            f"* At {budget} calls: {ahead:+.1f} dB against the best other row ({best['name']})."
        )
    choices = [row for row in record["rows"] if row["part"] == "choices" and row["kind"] == "ours"]
    shipped = next(row for row in choices if row["name"] == "as shipped")
    better = [r["name"] for r in choices if r["psnr_mean"] > shipped["psnr_mean"] + EQUAL]
    lines.append(f"* Settings that did better here than as shipped: {', '.join(better) or 'none'}.")
    return "\n".join(lines)
