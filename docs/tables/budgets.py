"""The tables of `erta bench budgets` and `erta bench lambda`: schedules."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import caption, table
from tables.rows import budgets, full_run, quality, samples


def budgets_section(record: Record) -> str:
    """PSNR of every schedule, a row a schedule and what stands in, a column a number of calls."""
    columns = budgets(record)
    rows: dict[tuple[str, str], dict[int, Row]] = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            rows.setdefault((row["stands_in"], row["name"]), {})[row["budget"]] = row
    best = {
        (kind, n): max(r[n]["psnr_mean"] for (other, _), r in rows.items() if other == kind)
        for kind, _ in rows
        for n in columns
    }
    lines = []
    for (kind, name), found in rows.items():
        cells = [quality(found[n]) for n in columns]
        marked = [
            f"**{cell}**" if found[n]["psnr_mean"] == best[kind, n] else cell
            for cell, n in zip(cells, columns, strict=True)
        ]
        lines.append([f"{kind}: {name}", *marked])
    full = full_run(record)
    settings = record["settings"]
    parts = [
        f"PSNR in dB against the full run of {full['calls']} calls, mean and standard deviation "
        f"over {samples(record)}; {settings['calibration_samples']} calibration samples. The best "
        "of each group is bold.",
        table(["", *(f"{n} calls" for n in columns)], lines),
    ]
    if settings["refine_trials"]:
        parts.append(
            f"Refined plans tried {settings['refine_trials']} moves on "
            f"{settings['refine_samples']} calibration samples, {settings['refine_calls']} network "
            "calls of a branch in all."
        )
    return "\n\n".join([*parts, caption(record)])


def lambda_section(record: Record) -> str:
    """What a fifth less and more of lambda does."""
    lines = [
        [
            f"{row['budget']} calls asked, lambda {row['name']}",
            f"{row['threshold']:.4f}",
            f"{row['calls']:g}",
            quality(row),
        ]
        for row in record["rows"]
        if row["budget"] is not None
    ]
    return "\n\n".join(
        [
            table(["", "lambda", "network calls", "PSNR"], lines),
            f"{samples(record)}; {caption(record)}",
        ]
    )
