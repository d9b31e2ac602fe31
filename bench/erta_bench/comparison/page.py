"""The report of `erta bench policies`: a table for each number of calls, and the Pareto plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erta_bench.core import choose_clock
from erta_bench.core.page import (
    Columns,
    describe_samples,
    find_full_run,
    make_sections,
    write_bench_page,
)
from erta_bench.core.pareto import write_pareto_plot

SHOWN: Columns = {
    "name": ("", "{}"),
    "calls": ("calls", "{:.4g}"),
    "processor_speedup": ("speed-up", "{:.2f}×"),
    "processor_efficiency": ("efficiency", "{:.2f}"),
    "psnr_fine_mean": ("exact", "{:.1f}"),
    "psnr_fine_std": ("±", "{:.1f}"),
    "psnr_fine_worst": ("worst", "{:.1f}"),
    "psnr_mean": ("full run", "{:.1f}"),
    "psnr_std": ("±", "{:.1f}"),
    "psnr_worst": ("worst", "{:.1f}"),
    "ssim_mean": ("SSIM", "{:.4f}"),
    "work": ("work", "{:.0%}"),
    "bytes_held": ("bytes held", "{:,}"),
    "calibration_calls": ("calibration", "{}"),
    "setting": ("solved", "{}"),
}
GROUPS = {
    "plain": "Fewer steps",
    "policy": "Policies",
    "combination": "Combinations",
    "other": "Other projects' caches",
}
NOTE = (
    "Each mark is one row: PSNR to the exact solution and to the full run from the same noise, "
    "over network calls and over processor time. The dashed line joins the rows that no other "
    "beats in both; the dotted one is the full run's own distance to the exact solution."
)
EXPLAINED = {
    "calls": "Network calls of each guidance branch per sample. Other projects' caches call the "
    "network at every step and skip blocks inside it; for them, runs of the block stack.",
    "solved": "The setting that was searched for, so that all rows do as much work.",
    "speed-up": "Processor seconds of the full run over those of the row, in the same run; wall "
    "seconds where an accelerator computes.",
    "efficiency": "The speed-up times the work: 1 is all that the saved work allows.",
    "exact": "PSNR in dB to a nearly exact solution from the same noise: mean, deviation and worst "
    "of all samples. The full run has a distance to it as well.",
    "full run, SSIM": "PSNR in dB, and SSIM, to the full run from the same noise.",
    "work": "What the linear and convolution layers computed, as a share of the full run's.",
    "bytes held": "Bytes per sample held between steps, beyond what as many plain steps hold.",
    "calibration": "Network calls of each branch, over all samples, that the profile took; rows "
    "with the same profile share it.",
}


def write_page(record: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `report.html`, which needs no other file, and `pareto.png` beside it.

    Args:
        record: What `erta bench policies --json` writes.
        folder: Where to; made if need be.

    Returns:
        The page.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    record = {**record, "rows": choose_clock(record["rows"], record["machine"])}
    return write_bench_page(
        record,
        folder,
        title=make_heading(record),
        intro=describe_samples(record, "prompts"),
        plot=write_pareto_plot,
        plot_name="pareto.png",
        note=NOTE,
        sections=make_sections(record["rows"], "group", GROUPS, SHOWN),
        explained=EXPLAINED,
    )


def make_heading(record: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    budgets = sorted({row["budget"] for row in record["rows"] if row.get("budget")}, reverse=True)
    asked = " and ".join(str(budget) for budget in budgets)
    model = record["settings"].get("model", "shapes-wan")
    return f"Policies on {model}, {asked} of {find_full_run(record)['steps']} network calls"
