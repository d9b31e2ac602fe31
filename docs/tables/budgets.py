"""The tables of `erta bench budgets` and `erta bench lambda`: schedules."""

from __future__ import annotations

from erta_bench.comparison import Axis
from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import (
    AXES,
    QUALITY_HEADINGS,
    count_samples,
    describe_full_run,
    find_full_run,
    format_both,
    format_quality,
    format_work,
    list_budgets,
    read_mean,
)


def render_budgets(record: Record) -> str:
    """PSNR on each axis: a row for each schedule and predictor, a column for each budget."""
    full, settings = find_full_run(record), record["settings"]
    parts = [
        f"PSNR in dB against the exact solution and against the full run of {full['calls']} calls, "
        f"mean and standard deviation over {count_samples(record)}; "
        f"{settings['calibration_samples']} calibration samples. {describe_full_run(record)} The "
        "best of each group is bold. Work, of the full run's, is that of the columns in their "
        "order.",
        *(render_axis(record, axis) for axis in AXES),
    ]
    if settings["refine_trials"]:
        parts.append(
            f"Refined plans tried {settings['refine_trials']} moves on "
            f"{settings['refine_samples']} calibration samples, {settings['refine_calls']} network "
            "calls of a branch in all."
        )
    return "\n\n".join([*parts, format_caption(record)])


def render_axis(record: Record, axis: Axis) -> str:
    """The table of one axis; the best of each predictor is bold."""
    columns, full = list_budgets(record), find_full_run(record)
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            rows.setdefault((row["stands_in"], row["name"]), {})[row["budget"]] = row
    best = {
        (kind, n): max(read_mean(r[n], axis) for (other, _), r in rows.items() if other == kind)
        for kind, _ in rows
        for n in columns
    }
    lines = []
    for (kind, name), found in rows.items():
        cells = {n: format_quality(found[n], axis) for n in columns}
        marked = [
            f"**{cell}**" if read_mean(found[n], axis) == best[kind, n] else cell
            for n, cell in cells.items()
        ]
        work = " / ".join(format_work(found[n], full) for n in columns)
        lines.append([f"{kind}: {name}", work, *marked])
    return render_table([f"to {axis.name}", "work", *(f"{n} calls" for n in columns)], lines)


def render_lambda(record: Record) -> str:
    """What a fifth less and more of lambda does."""
    lines = [
        [
            f"{row['budget']} calls asked, lambda {row['name']}",
            f"{row['threshold']:.4f}",
            f"{row['calls']:g}",
            *format_both(row),
        ]
        for row in record["rows"]
        if row["budget"] is not None
    ]
    return "\n\n".join(
        [
            render_table(["", "lambda", "network calls", *QUALITY_HEADINGS], lines),
            f"{count_samples(record)}. {describe_full_run(record)} {format_caption(record)}",
        ]
    )
