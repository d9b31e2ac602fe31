"""The tables of `erta bench peers`: who leads on both axes, the goals, and every row by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erta_bench.comparison import (
    CLEAR,
    KINDS,
    OWN_LOOP,
    TO_EXACT,
    TO_FULL,
    Leaders,
    find_leaders,
    format_lead,
    judge_goals,
    list_unclear,
)
from erta_bench.core.page import find_full_run
from tables.data import Record
from tables.markdown import escape_cell, format_caption, render_table, render_words
from tables.rows import DASH, count_samples, format_distance

LED = ("peer", "plain", "composed")
VERDICTS = {True: "reached", False: "**not reached**", None: "not measured"}


def render_peers_summary(record: Record) -> str:
    """Who leads at each number of calls, to the exact solution first, then to the full run."""
    full = find_full_run(record)
    headings = ["calls", "our best", "to the exact solution", "worst", "over the best peer"]
    headings += ["over the best plain", "over the best recombination", "to the full run"]
    headings += ["over the best peer there"]
    own = [str(full["steps"]), "the full run", *format_distance(full, TO_EXACT)]
    lines = [[*own, *[""] * (len(headings) - len(own))]]
    to_full = find_leaders(record["rows"], TO_FULL)
    lines += map(format_leaders, find_leaders(record["rows"], TO_EXACT), to_full)
    total = full["prompts"] * full["seeds"]
    said = (
        f"PSNR in dB, over {count_samples(record, 'samples')} ({total} in all), on "
        f"{record['settings']['model']} {describe_loop(record)}; leads are of the mean and of the "
        "worst sample. "
        f"{describe_solution(record)} {format_caption(record)}"
    )
    verdicts = "; ".join(f"{goal.number}: {VERDICTS[goal.reached]}" for goal in judge_goals(record))
    return "\n\n".join([render_table(headings, lines), said, f"Goals: {verdicts}."])


def describe_claim(*records: Record) -> str:
    """How much nearer to the exact solution than the full run ours is, model by model."""
    said = []
    for record in records:
        full = find_full_run(record)[TO_EXACT.mean]
        leads = [
            f"{leaders.best['ours'][TO_EXACT.mean] - full:+.1f} dB at {leaders.budget}"
            for leaders in find_leaders(record["rows"], TO_EXACT)
            if "ours" in leaders.best
        ]
        if leads:
            said.append(f"* {record['settings']['model']}: {', '.join(leads)} calls.")
    return "\n".join(said)


def describe_loop(record: Record) -> str:
    """What the model was sampled by."""
    pipeline = record["settings"]["pipeline"]
    return f"in {OWN_LOOP}" if pipeline == OWN_LOOP else f"through the unmodified {pipeline}"


def format_leaders(exact: Leaders, full: Leaders) -> list[str]:
    """One number of calls, on both axes."""
    ours, other = exact.best.get("ours"), full.best.get("ours")
    return [
        str(exact.budget),
        DASH if ours is None else str(ours["name"]),
        *format_distance(ours or {}, TO_EXACT),
        *(format_over(exact, kind) for kind in LED),
        DASH if other is None else f"{format_distance(other, TO_FULL)[0]} ({other['name']})",
        format_over(full, "peer"),
    ]


def format_over(leaders: Leaders, kind: str) -> str:
    """The lead over another kind, of the mean and of the worst sample, and over which row."""
    if leaders.lead(kind) is None:
        return DASH
    leads = f"{format_lead(leaders.lead(kind))} / {format_lead(leaders.lead_worst(kind))}"
    best = leaders.best[kind]
    return f"{leads} ({best['name']}, {best[leaders.axis.mean]:.1f})"


def describe_solution(record: Record) -> str:
    """How exact the solution is, and which rows are too near to it to say anything."""
    known = record["settings"].get("solution_psnr")
    if known is None:
        return "Dashes are numbers that this older record does not hold."
    said = f"The solution is {known:.1f} dB from the truth, as estimated."
    if unclear := list_unclear(record):
        names = dict.fromkeys(row["name"] for row in unclear)
        said += (
            f" **Rows within {CLEAR:.0f} dB of that are no nearer than can be told:** "
            f"{', '.join(names)}."
        )
    return said


def render_goals(record: Record) -> str:
    """What is aimed at, what is reached, and by how much."""
    lines = [
        [str(goal.number), goal.title, VERDICTS[goal.reached], goal.said]
        for goal in judge_goals(record)
    ]
    return render_words(["", "Goal", "", "Measured, in dB"], lines)


def render_peers(record: Record) -> str:
    """Every row, by number of calls and kind, and those that are not as asked for."""
    full = find_full_run(record)
    headings = ["", "calls", "exact", "worst", "full run", "worst", "± sets", "SSIM"]
    headings += ["as prompted", "speed-up", "efficiency", "work", "calibration"]
    parts = [render_table(headings, [format_peer(full)])]
    if full.get("right") is not None:
        shown = f"The full run shows what its prompt says in {full['right']:.1%} of the samples."
        parts.insert(0, shown)
    for budget in dict.fromkeys(row["budget"] for row in record["rows"] if row["budget"]):
        parts.append(f"### {budget} network calls")
        own = [row for row in record["rows"] if row["budget"] == budget]
        for kind, name in KINDS.items():
            rows = [r for r in own if r["kind"] == kind and r.get("psnr_mean") is not None]
            rows.sort(key=lambda row: -float(row.get(TO_EXACT.mean) or 0.0))
            if rows:
                parts += [f"**{name}**", render_table(headings, map(format_peer, rows))]
    odd = [row for row in record["rows"] if row["status"] != "measured"]
    if odd:
        lines = [
            [r["name"], str(r["budget"]), r["status"], escape_cell(r.get("detail"))] for r in odd
        ]
        parts += ["### Not as asked for", render_words(["", "Calls", "Status", "Why"], lines)]
    return "\n\n".join(parts)


def format_peer(row: Mapping[str, Any]) -> list[str]:
    """One row; the setting that was solved for stands under its name."""
    solved = f"<br>`{row['setting']}`" if row.get("setting") else ""

    def number(key: str, form: str) -> str:
        return "" if row.get(key) is None else form.format(row[key])

    return [
        f"{row['name']}{solved}",
        number("calls", "{:.4g}"),
        *format_distance(row, TO_EXACT),
        *format_distance(row, TO_FULL),
        number("psnr_sets_std", "{:.2f}"),
        number("ssim_mean", "{:.3f}"),
        number("right", "{:.1%}"),
        number("processor_speedup", "{:.2f} x"),
        number("processor_efficiency", "{:.3f}"),
        number("work", "{:.0%}"),
        number("calibration_calls", "{}"),
    ]
