"""The report of `erta bench peers`: who leads, a table for each number of calls, and the plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import (
    CLEAR,
    KINDS,
    TO_EXACT,
    Leaders,
    find_leaders,
    list_unclear,
)
from erta_bench.comparison.curves import write_curves_plot
from erta_bench.core import choose_clock
from erta_bench.core.page import (
    Columns,
    describe_samples,
    find_full_run,
    make_sections,
    make_table,
    write_bench_page,
)

Record = Mapping[str, Any]

SHOWN: Columns = {
    "name": ("", "{}"),
    "calls": ("calls", "{:.4g}"),
    "psnr_fine_mean": ("exact", "{:.1f}"),
    "psnr_fine_std": ("±", "{:.1f}"),
    "psnr_fine_worst": ("worst", "{:.1f}"),
    "psnr_mean": ("full run", "{:.1f}"),
    "psnr_std": ("±", "{:.1f}"),
    "psnr_worst": ("worst", "{:.1f}"),
    "psnr_sets_std": ("± sets", "{:.2f}"),
    "ssim_mean": ("SSIM", "{:.4f}"),
    "right": ("as prompted", "{:.1%}"),
    "processor_speedup": ("speed-up", "{:.2f}×"),
    "processor_efficiency": ("efficiency", "{:.3f}"),
    "work": ("work", "{:.0%}"),
    "bytes_held": ("bytes held", "{:,}"),
    "calibration_calls": ("calibration", "{:,}"),
    "setting": ("solved", "{}"),
}
LEADS: Columns = {
    "calls": ("calls", "{}"),
    "ours": ("our best", "{}"),
    "mean": ("PSNR", "{:.1f}"),
    "worst": ("worst", "{:.1f}"),
    "over_full": ("over the full run", "{:+.1f} dB"),
    "peer": ("over the best peer", "{:+.1f} dB"),
    "peer_worst": ("worst", "{:+.1f} dB"),
    "peer_name": ("which is", "{}"),
    "plain": ("over the best plain", "{:+.1f} dB"),
    "plain_worst": ("worst", "{:+.1f} dB"),
    "composed": ("over the best recombination", "{:+.1f} dB"),
    "composed_worst": ("worst", "{:+.1f} dB"),
    "efficiency": ("efficiency", "{:.3f}"),
}
NOTE = (
    "Each mark is one row: PSNR over network calls, against the exact solution and against the "
    "full run from the same noise. Lines join the best row of each kind; bars are one standard "
    "deviation over the samples, crosses the worst sample. The dashed line is the full run."
)
EXPLAINED = {
    "ours": "Methods that are ours, whole or in their decisive part.",
    "peers": "Published methods as published, and other projects' caches.",
    "recombined": "Published parts in new combinations, and plain solvers on the sigmas at which a "
    "planned schedule computes. They count neither as peers nor as ours.",
    "fitted to what is measured": "Our weights, refined end to end on the very samples that are "
    "measured, every fourth of which only says when to stop. Of the first batch alone.",
    "calls": "Network calls of each guidance branch per sample. Other projects' caches call the "
    "network at every step and skip blocks inside it; for them, runs of the block stack.",
    "exact": "PSNR against a nearly exact solution from the same noise: mean, deviation and worst "
    "of all samples.",
    "full run": "PSNR against the full run from the same noise, likewise. ± sets is the deviation "
    "of the means of the seed sets. SSIM is against the full run too.",
    "as prompted": "Share of samples whose pixels show everything that the prompt says.",
    "efficiency": "Processor seconds of the full run over those of the row, times the work; wall "
    "seconds where an accelerator computes.",
    "work": "What the linear and convolution layers computed, as a share of the full run's.",
    "bytes held": "Bytes per sample held between steps, beyond what as many plain steps hold.",
    "calibration": "Network calls of each branch, over all samples, that the profile took.",
    "solved": "The setting that was searched for, so that all rows do as much work.",
}


def write_peers_page(record: Record, folder: str | Path) -> Path:
    """Write `report.html`, which needs no other file, and `peers.png` beside it.

    Args:
        record: What `erta bench peers --json` writes.
        folder: Where to; made if need be.

    Returns:
        The page.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    rows = choose_clock(record["rows"], record["machine"])
    record = {**record, "rows": rows}
    return write_bench_page(
        record,
        folder,
        title=make_heading(record),
        intro=" ".join([describe_samples(record, "samples"), *list_warnings(record)]),
        plot=write_curves_plot,
        plot_name="peers.png",
        note=NOTE,
        sections=make_sections(rows, "kind", KINDS, SHOWN, by=TO_EXACT.mean),
        explained=EXPLAINED,
        leaders=make_table([make_lead_row(each, record) for each in find_leaders(rows)], LEADS),
        full=make_table([find_full_run(record)], SHOWN),
    )


def list_warnings(record: Record) -> list[str]:
    """What a reader must know before the numbers: a stopped run, and a solution too inexact."""
    found = []
    settings = record["settings"]
    if unfinished := settings.get("unfinished"):
        found.append(f"This run was stopped: {unfinished}. Its numbers are no result.")
    if settings.get("solution_psnr") is not None:
        found.append(f"The exact solution is {settings['solution_psnr']:.1f} dB from the truth.")
    if unclear := list_unclear(record):
        names = dict.fromkeys(row["name"] for row in unclear)
        found.append(
            f"Rows within {CLEAR:.0f} dB of that are no nearer than can be told, and need more "
            f"substeps: {', '.join(names)}."
        )
    return found


def make_heading(record: Record) -> str:
    """What was compared, in one line."""
    full = find_full_run(record)
    budgets = sorted({row["budget"] for row in record["rows"] if row.get("budget")}, reverse=True)
    *most, last = map(str, budgets)
    asked = f"{', '.join(most)} and {last}" if most else last
    return f"Everyone on {record['settings']['model']}, {asked} of {full['steps']} network calls"


def make_lead_row(standing: Leaders, record: Record) -> Record:
    """Who leads at one number of calls on one axis, as a flat record."""
    best, axis = standing.best, standing.axis
    ours, full = best.get("ours", {}), find_full_run(record).get(axis.mean)
    over_full = None if full is None or not ours else ours[axis.mean] - full
    return {
        "calls": standing.budget,
        "ours": ours.get("name"),
        "mean": ours.get(axis.mean),
        "worst": ours.get(axis.worst),
        "over_full": over_full,
        **{kind: standing.lead(kind) for kind in ("peer", "plain", "composed")},
        **{f"{kind}_worst": standing.lead_worst(kind) for kind in ("peer", "plain", "composed")},
        **{f"{kind}_name": best.get(kind, {}).get("name") for kind in ("peer", "plain")},
        "efficiency": ours.get("processor_efficiency"),
    }
