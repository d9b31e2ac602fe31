"""The tables of `erta bench peers`: who leads, and every row by kind."""

from __future__ import annotations

from collections.abc import Sequence

from erta_bench.comparison import EFFICIENCY, KINDS, Leaders, find_leaders
from erta_bench.comparison.peers_page import make_lead_row
from erta_bench.core.page import find_full_run
from tables.data import Record, Row
from tables.markdown import escape_cell, format_caption, render_table, render_words


def render_peers_summary(record: Record) -> str:
    """Who leads at each number of calls, and whether the goals are reached."""
    full = find_full_run(record)
    headings = ["calls", "our best", "PSNR", "over the best peer", "over the best plain"]
    headings += ["over the best recombination", "oracle", "efficiency"]
    found = find_leaders(record["rows"])
    lines = [format_lead(leaders) for leaders in found]
    total = full["prompts"] * full["seeds"]
    said = (
        f"PSNR in dB against the full run of {full['steps']} steps, over {full['prompts']} "
        f"held-out samples in each of {full['seeds']} seed sets ({total} in all), on "
        f"{record['settings']['model']} through the unmodified {record['settings']['pipeline']}. "
        f"{format_caption(record)}"
    )
    return "\n\n".join([render_table(headings, lines), said, describe_verdicts(found)])


def format_lead(leaders: Leaders) -> list[str]:
    """One number of calls."""
    row = make_lead_row(leaders)

    def over(kind: str) -> str:
        lead = leaders.lead(kind)
        if lead is None:
            return ""
        return f"{lead:+.1f} ({leaders.best[kind]['name']}, {leaders.best[kind]['psnr_mean']:.1f})"

    oracle = leaders.best.get("oracle")
    return [
        str(leaders.budget),
        str(row["ours"]),
        f"{row['psnr']:.1f} ± {leaders.best['ours']['psnr_std']:.1f}",
        *map(over, ("peer", "plain", "composed")),
        "" if oracle is None else f"{oracle['psnr_mean']:.1f}",
        f"{row['efficiency']:.3f}",
    ]


def describe_verdicts(found: Sequence[Leaders]) -> str:
    """What was aimed at, and what was reached, number of calls by number of calls."""
    lines = []
    for leaders in found:
        efficiency = leaders.best["ours"]["processor_efficiency"]
        speed = "is reached" if efficiency >= EFFICIENCY else "is not reached"
        said = f"an efficiency of {EFFICIENCY:g} {speed} ({efficiency:.3f})"
        if leaders.goal is not None:
            over = "reached" if leaders.reached else "**not reached**"
            said = (
                f"{leaders.goal:.0f} dB over the best peer and the best plain row: {over} "
                f"({leaders.lead('peer'):+.1f} and {leaders.lead('plain'):+.1f}); {said}"
            )
        lines.append(f"* At {leaders.budget} calls, {said}.")
    return "\n".join(lines)


def render_peers(record: Record) -> str:
    """Every row, by number of calls and kind, and those that are not as asked for."""
    full = find_full_run(record)
    headings = ["", "calls", "PSNR", "± sets", "SSIM", "as prompted", "fine"]
    headings += ["speed-up", "efficiency", "work", "calibration"]
    parts = [
        f"The full run shows what its prompt says in {full['right']:.1%} of the samples, and is "
        f"{full['psnr_fine_mean']:.1f} dB from nearly exact steps."
    ]
    for budget in dict.fromkeys(row["budget"] for row in record["rows"] if row["budget"]):
        parts.append(f"### {budget} network calls")
        own = [row for row in record["rows"] if row["budget"] == budget]
        for kind, name in KINDS.items():
            rows = [r for r in own if r["kind"] == kind and r.get("psnr_mean") is not None]
            rows.sort(key=lambda row: -float(row["psnr_mean"]))
            if rows:
                parts += [f"**{name}**", render_table(headings, map(format_peer, rows))]
    odd = [row for row in record["rows"] if row["status"] != "measured"]
    if odd:
        lines = [
            [r["name"], str(r["budget"]), r["status"], escape_cell(r.get("detail"))] for r in odd
        ]
        parts += ["### Not as asked for", render_words(["", "Calls", "Status", "Why"], lines)]
    return "\n\n".join(parts)


def format_peer(row: Row) -> list[str]:
    """One row; the setting that was solved for stands under its name."""
    solved = f"<br>`{row['setting']}`" if row["setting"] else ""

    def number(key: str, form: str) -> str:
        return "" if row.get(key) is None else form.format(row[key])

    return [
        f"{row['name']}{solved}",
        number("calls", "{:.4g}"),
        f"{row['psnr_mean']:.1f} ± {row['psnr_std']:.1f}",
        number("psnr_sets_std", "{:.2f}"),
        number("ssim_mean", "{:.3f}"),
        number("right", "{:.1%}"),
        number("psnr_fine_mean", "{:.1f}"),
        number("processor_speedup", "{:.2f} x"),
        number("processor_efficiency", "{:.3f}"),
        number("work", "{:.0%}"),
        number("calibration_calls", "{}"),
    ]
