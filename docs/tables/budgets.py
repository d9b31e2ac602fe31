"""The tables of `erta bench budgets` and `erta bench lambda`: schedules."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import format_caption, render_table
from tables.rows import count_samples, find_full_run, format_quality, format_work, list_budgets


def render_budgets(record: Record) -> str:
    """PSNR: a row for each schedule and predictor, a column for each number of calls."""
    columns = list_budgets(record)
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            rows.setdefault((row["stands_in"], row["name"]), {})[row["budget"]] = row
    best = {
        (kind, n): max(r[n]["psnr_mean"] for (other, _), r in rows.items() if other == kind)
        for kind, _ in rows
        for n in columns
    }
    full = find_full_run(record)
    lines = []
    for (kind, name), found in rows.items():
        cells = [format_quality(found[n]) for n in columns]
        marked = [
            f"**{cell}**" if found[n]["psnr_mean"] == best[kind, n] else cell
            for cell, n in zip(cells, columns, strict=True)
        ]
        work = " / ".join(format_work(found[n], full) for n in columns)
        lines.append([f"{kind}: {name}", work, *marked])
    settings = record["settings"]
    parts = [
        f"PSNR in dB against the full run of {full['calls']} calls, mean and standard deviation "
        f"over {count_samples(record)}; {settings['calibration_samples']} calibration samples. The "
        "best of each group is bold. Work, of the full run's, is that of the columns in their "
        "order.",
        render_table(["", "work", *(f"{n} calls" for n in columns)], lines),
    ]
    if settings["refine_trials"]:
        parts.append(
            f"Refined plans tried {settings['refine_trials']} moves on "
            f"{settings['refine_samples']} calibration samples, {settings['refine_calls']} network "
            "calls of a branch in all."
        )
    return "\n\n".join([*parts, format_caption(record)])


def render_lambda(record: Record) -> str:
    """What a fifth less and more of lambda does."""
    lines = [
        [
            f"{row['budget']} calls asked, lambda {row['name']}",
            f"{row['threshold']:.4f}",
            f"{row['calls']:g}",
            format_quality(row),
        ]
        for row in record["rows"]
        if row["budget"] is not None
    ]
    return "\n\n".join(
        [
            render_table(["", "lambda", "network calls", "PSNR"], lines),
            f"{count_samples(record)}; {format_caption(record)}",
        ]
    )
