"""The tables of methods inside the network beside whole outputs, at equal work."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.comparison import TO_EXACT
from tables.data import Record, Row
from tables.markdown import escape_cell, format_caption, render_table, render_words
from tables.rows import (
    QUALITY_HEADINGS,
    count_samples,
    describe_full_run,
    find_full_run,
    format_both,
    list_budgets,
    read_mean,
)

WHOLE = ("uniform reuse", "uniform + line")
"""What any row that meets no budget stands beside: whole outputs, with the least that they take."""
HEADINGS = ["", "work", "calls", *QUALITY_HEADINGS, "speed-up", "bytes held"]
SLACK = 0.02
"""A row beside another may do so much more of the full run's work."""


def render_modules(record: Record) -> str:
    """Rows at each amount of work, those that reach none, and those that cannot run."""
    full = find_full_run(record)
    rows = [row for row in record["rows"] if row["budget"] is not None]
    parts = [
        f"{count_samples(record)}, on {record['settings']['model']} through the unmodified "
        f"{record['settings']['pipeline']}; PSNR in dB to the exact solution, and to the full run "
        f"of {full['steps']} steps. {describe_full_run(record)}"
    ]
    for budget in list_budgets(record):
        own = [r for r in rows if r["budget"] == budget and r["status"] == "measured"]
        own.sort(key=lambda row: -read_mean(row, TO_EXACT))
        parts += [
            f"**The work of {budget} of {full['steps']} calls**",
            render_table(HEADINGS, map(format_row, own)),
        ]
    met = {(r["name"], r["setting"]) for r in rows if r["status"] == "measured"}
    off = {(r["name"], r["setting"]): r for r in rows if r["status"] == "off budget"}
    off = {key: row for key, row in off.items() if key not in met}
    if off:
        named = {row["name"] for row in rows}
        whole = [name for name in WHOLE if name in named]
        beside = [*HEADINGS[:-1], *(f"{name}, no more work" for name in whole)]
        ranked = sorted(off.values(), key=lambda row: -float(row["work"]))
        lines = [[*format_row(r)[:-1], *(find_beside(n, r, rows) for n in whole)] for r in ranked]
        parts += [
            "**Rows that no setting brings to the work**, once for each setting, beside whole "
            "outputs that do no more, by their means to the exact solution and to the full run:",
            render_table(beside, lines),
        ]
    parts += list_odd(rows)
    return "\n\n".join([*parts, format_caption(record)])


def render_plans(record: Record) -> str:
    """The same of rows with plans of their own for places, under a heading of the model."""
    return f"### {record['settings']['model']}\n\n{render_modules(record)}"


def format_row(row: Row) -> list[str]:
    """One row; the setting that was solved for stands under its name."""
    solved = f"<br>`{row['setting']}`" if row["setting"] else ""
    return [
        f"{row['name']}{solved}",
        f"{row['work']:.0%}",
        f"{row['calls']:.4g}",
        *format_both(row),
        f"{row['processor_speedup']:.2f} x",
        f"{max(0, row['bytes_held']):,}",
    ]


def find_beside(name: str, row: Row, rows: Sequence[Row]) -> str:
    """PSNR on both axes and work of another row at the largest budget with no more work."""
    found = [r for r in rows if r["name"] == name and r["work"] <= row["work"] + SLACK]
    if not found:
        return ""
    best = max(found, key=lambda one: float(one["work"]))
    return f"{best['psnr_fine_mean']:.1f}, {best['psnr_mean']:.1f} ({best['work']:.0%})"


def list_odd(rows: Sequence[Row]) -> list[str]:
    """Rows that did not run, each once, with the reason."""
    odd = {r["name"]: r for r in rows if r["status"] not in ("measured", "off budget")}
    if not odd:
        return []
    lines = [[name, r["status"], escape_cell(r.get("detail"))] for name, r in odd.items()]
    return [render_words(["", "Status", "Why"], lines)]
