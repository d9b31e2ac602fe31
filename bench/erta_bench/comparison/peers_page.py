"""The report of `erta bench peers`: who leads, a table for each number of calls, and the plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import EFFICIENCY, KINDS, Leaders, find_leaders
from erta_bench.comparison.curves import write_curves_plot
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
    "psnr_mean": ("PSNR", "{:.1f}"),
    "psnr_std": ("±", "{:.1f}"),
    "psnr_sets_std": ("± sets", "{:.2f}"),
    "ssim_mean": ("SSIM", "{:.4f}"),
    "right": ("as prompted", "{:.1%}"),
    "psnr_fine_mean": ("PSNR, fine", "{:.1f}"),
    "processor_speedup": ("speed-up", "{:.2f}×"),
    "processor_efficiency": ("efficiency", "{:.3f}"),
    "work": ("work", "{:.0%}"),
    "bytes_held": ("bytes held", "{:,}"),
    "calibration_calls": ("calibration", "{}"),
    "setting": ("solved", "{}"),
}
LEADS: Columns = {
    "calls": ("calls", "{}"),
    "ours": ("our best", "{}"),
    "psnr": ("PSNR", "{:.1f}"),
    "peer": ("over the best peer", "{:+.1f} dB"),
    "peer_name": ("which is", "{}"),
    "plain": ("over the best plain", "{:+.1f} dB"),
    "plain_name": ("which is", "{}"),
    "composed": ("over the best recombination", "{:+.1f} dB"),
    "goal": ("aimed at", "{:+.0f} dB"),
    "reached": ("reached", "{}"),
    "efficiency": ("efficiency", "{:.3f}"),
}
NOTE = (
    "Each mark is one row: PSNR against the full run from the same noise, over network calls. "
    "Lines join the best row of each kind; bars are one standard deviation over the samples."
)
EXPLAINED = {
    "ours": "Methods that are ours, whole or in their decisive part.",
    "peers": "Published methods as published, and other projects' caches.",
    "recombined": "Published parts in new combinations, and plain solvers on the sigmas at which a "
    "planned schedule computes. They count neither as peers nor as ours.",
    "oracle": "Our weights, fitted to the very samples that are measured. The distance to it is "
    "what calibrating on other prompts costs. Measured on the first batch of each seed set.",
    "calls": "Network calls of each guidance branch per sample. Other projects' caches call the "
    "network at every step and skip blocks inside it; for them, runs of the block stack.",
    "PSNR, SSIM": "Against the full run from the same noise, over all samples; ± sets is the "
    "deviation of the means of the seed sets.",
    "as prompted": "Share of samples whose pixels show everything that the prompt says.",
    "PSNR, fine": "Against second-order steps on a grid twice as fine: nearly the exact flow.",
    "efficiency": "Processor seconds of the full run over those of the row, times the work.",
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
    rows = record["rows"]
    goal = f"The efficiency aimed at is {EFFICIENCY:g}."
    return write_bench_page(
        record,
        folder,
        title=make_heading(record),
        intro=f"{describe_samples(record, 'samples')} {goal}",
        plot=write_curves_plot,
        plot_name="peers.png",
        note=NOTE,
        sections=make_sections(rows, "kind", KINDS, SHOWN),
        explained=EXPLAINED,
        leaders=make_table([make_lead_row(standing) for standing in find_leaders(rows)], LEADS),
        full=make_table([find_full_run(record)], SHOWN),
    )


def make_heading(record: Record) -> str:
    """What was compared, in one line."""
    full = find_full_run(record)
    budgets = sorted({row["budget"] for row in record["rows"] if row.get("budget")}, reverse=True)
    *most, last = map(str, budgets)
    asked = f"{', '.join(most)} and {last}" if most else last
    return f"Everyone on {record['settings']['model']}, {asked} of {full['steps']} network calls"


def make_lead_row(standing: Leaders) -> Record:
    """Who leads at one number of calls, as a flat record."""
    best = standing.best
    ours = best.get("ours", {})
    reached = {None: None, True: "yes", False: "no"}[standing.reached]
    return {
        "calls": standing.budget,
        "ours": ours.get("name"),
        "psnr": ours.get("psnr_mean"),
        **{kind: standing.lead(kind) for kind in ("peer", "plain", "composed")},
        **{f"{kind}_name": best.get(kind, {}).get("name") for kind in ("peer", "plain")},
        "goal": standing.goal,
        "reached": reached,
        "efficiency": ours.get("processor_efficiency"),
    }
