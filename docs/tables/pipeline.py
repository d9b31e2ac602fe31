"""The table of `erta bench pipeline`: the ablation through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Iterable

from tables.ablation import (
    RECIPE,
    collect_ladder,
    measure_gap,
)
from tables.data import MissingDataError, Record, Row, find_command
from tables.markdown import format_caption, join_numbers, render_table
from tables.rows import AXES, format_both, format_gaps, format_work, list_budgets, read_mean

PLAIN = "plain"
"""Stands for the plain steps of either scheduler."""
SCHEDULERS = {"flow_euler": "Euler", "unipc": "UniPC"}


def render_pipeline(record: Record, own: Record) -> str:
    """The ablation through `WanPipeline`: a table a number of calls, and what it says."""
    rows = group_by_scheduler(record)
    fulls = [row for row in record["rows"] if row["budget"] is None]
    full = fulls[0]
    said = ", ".join(
        f"under {SCHEDULERS[row['scheduler']]} {row['psnr_fine_mean']:.1f} dB "
        f"(worst {row['psnr_fine_worst']:.1f})"
        for row in fulls
    )
    parts = [
        f"{full['prompts']} held-out prompts; PSNR in dB to the exact solution, in the mean and in "
        "the worst sample, and to the full run of the same scheduler. The column of the own loop "
        f"is to its full run. The full runs themselves are as near to the exact solution: {said}.",
        format_caption(record),
    ]
    for budget in list_budgets(record):
        headings = [f"{budget} calls", "work", "Euler, exact", "worst", "full run"]
        headings += ["own loop, same grid", "same bits", "UniPC, exact", "worst", "full run"]
        names = dict.fromkeys(name for (_, n, name) in rows if n == budget)
        lines = [
            format_scheduler_row(
                name, rows["flow_euler", budget, name], rows["unipc", budget, name], full
            )
            for name in names
        ]
        parts.append(render_table(headings, lines))
    return "\n\n".join([*parts, describe_pipeline(record, own)])


def group_by_scheduler(record: Record) -> dict[tuple[str, int, str], Row]:
    """Rows by scheduler, number of calls and name; both kinds of plain steps have one name.

    Raises:
        MissingDataError: One scheduler lacks a row that the other has.
    """
    found = {}
    for row in record["rows"]:
        if row["budget"] is not None:
            name = PLAIN if row["group"] == "plain" else row["name"]
            found[row["scheduler"], row["budget"], name] = row
    euler, unipc = (
        {key[1:] for key in found if key[0] == scheduler} for scheduler in ("flow_euler", "unipc")
    )
    if euler != unipc:
        raise MissingDataError(
            f"pipeline.json has other rows of flow_euler than of unipc ({sorted(euler ^ unipc)}); "
            f"write it with `{find_command('pipeline')}`"
        )
    return found


def format_scheduler_row(name: str, euler: Row, unipc: Row, full: Row) -> list[str]:
    """One row under both schedulers."""
    same = "yes" if euler["identical"] else f"within {euler['largest_difference']:.0e}"
    return [
        "plain steps" if name == PLAIN else name,
        format_work(euler, full),
        *format_both(euler),
        f"{euler['own_psnr_mean']:.1f}",
        same,
        *(["refused", "", ""] if unipc["status"] == "refused" else format_both(unipc)),
    ]


def describe_pipeline(record: Record, own: Record) -> str:
    """What the pipeline's numbers say beside those of the own loop, in words that follow."""
    rows = group_by_scheduler(record)
    euler = [row for row in record["rows"] if row["scheduler"] == "flow_euler"]
    same = [row for row in euler if row["identical"]]
    rest = [row for row in euler if not row["identical"]]
    apart = max((abs(r["psnr_mean"] - r["own_psnr_mean"]) for r in rest), default=0.0)
    furthest = max((row["largest_difference"] for row in rest), default=0.0)
    lines = [
        f"* The own loop on the pipeline's grid gives the same bits in {len(same)} of {len(euler)} "
        f"runs. The others ({', '.join(dict.fromkeys(r['name'] for r in rest)) or 'none'}) differ "
        f"by at most {furthest:.0e} in a pixel and {apart:.0e} dB in a mean."
    ]
    columns = list_budgets(record)
    theirs = collect_ladder(own)
    asked = [
        ("The offline policy against uniform reuse", "+ offline policy", "uniform"),
        ("Error rectification, added to it", RECIPE, "+ offline policy"),
        ("The recipe against as many plain steps of the same scheduler", RECIPE, PLAIN),
    ]
    for title, one, other in asked:
        plain = "plain Euler" if other == PLAIN else other
        for axis in AXES:
            own_gaps = {n: measure_gap(theirs, one, plain, n, axis) for n in columns}
            said = [("own loop, own grid", own_gaps)]
            for scheduler, shown in SCHEDULERS.items():
                gaps = {
                    n: read_mean(rows[scheduler, n, one], axis)
                    - read_mean(rows[scheduler, n, other], axis)
                    for n in columns
                }
                said.append((f"pipeline, {shown}", gaps))
            words = "; ".join(f"{where} {format_gaps(gaps)}" for where, gaps in said)
            lines.append(f"* {title}, to {axis.name} at {join_numbers(columns)} calls: {words}.")
    refused = [row for row in record["rows"] if row["status"] == "refused"]
    for detail, names in group_pairs((row["detail"], row["name"]) for row in refused).items():
        lines.append(f"* Refused under UniPC ({', '.join(names)}): `{detail}`.")
    return "\n".join(lines)


def group_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Second values by first, each once, in order."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        known = found.setdefault(key, [])
        if value not in known:
            known.append(value)
    return found
