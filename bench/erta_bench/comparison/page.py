"""The report of `erta bench policies`: a table for each number of calls, and the Pareto plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from erta_bench.core.page import kinds_tables, origin, write_report
from erta_bench.core.pareto import pareto_plot
from erta_framework.report import facts

SHOWN = {
    "name": ("", "{}"),
    "calls": ("calls", "{:.4g}"),
    "processor_speedup": ("speed-up", "{:.2f}×"),
    "processor_efficiency": ("efficiency", "{:.2f}"),
    "psnr_mean": ("PSNR", "{:.1f}"),
    "psnr_std": ("±", "{:.1f}"),
    "ssim_mean": ("SSIM", "{:.4f}"),
    "psnr_fine_mean": ("PSNR, fine", "{:.1f}"),
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
    "Each mark is one row: PSNR against the full run from the same noise, over network calls and "
    "over processor time. The dashed line joins those that nothing beats in both."
)
EXPLAINED = {
    "calls": "Network calls of each guidance branch a sample. With other projects' caches, which "
    "skip blocks inside a network that is called at every step: runs of the block stack.",
    "solved": "The setting that was solved for, so that rows have equally many calls.",
    "speed-up": "Processor seconds of the full run over those of the row, in this run.",
    "efficiency": "That speed-up over steps per call.",
    "PSNR, SSIM": "Against the full run from the same noise, mean and deviation over all samples.",
    "PSNR, fine": "Against second-order steps on a grid twice as fine: nearly the exact solution.",
    "work": "What the linear and convolution layers computed, as a share of the full run's.",
    "bytes held": "Bytes a sample held between steps, beyond as many plain steps.",
    "calibration": "Network calls of each branch, over all samples, that a profile took; rows with "
    "the same profile share it.",
}


def write_page(record: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `report.html` and `pareto.png`; the page needs nothing beside it.

    Args:
        record: What `erta bench policies --json` writes.
        folder: Where to; made if need be.

    Returns:
        The page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    title = heading(record)
    return write_report(
        record,
        folder,
        title=title,
        plot=pareto_plot,
        name="pareto.png",
        note=NOTE,
        body=lambda figure: body(record, title, figure),
    )


def heading(record: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    full = next(row for row in record["rows"] if row.get("budget") is None)
    budgets = sorted({row["budget"] for row in record["rows"] if row.get("budget")}, reverse=True)
    asked = " and ".join(str(budget) for budget in budgets)
    model = record["settings"].get("model", "shapes-wan")
    return f"Policies on {model}, {asked} of {full['steps']} network calls"


def body(record: Mapping[str, Any], title: str, figure: str) -> list[str]:
    """The parts of the page."""
    rows: Sequence[Mapping[str, Any]] = record["rows"]
    full = next(row for row in rows if row.get("budget") is None)
    sets = "seed set" if full["seeds"] == 1 else "seed sets"
    samples = f"{full['prompts']} held-out prompts, {full['seeds']} {sets}"
    pipeline = record["settings"].get("pipeline", "WanPipeline")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{samples}, through the unmodified {pipeline} of diffusers.</p>',
        figure,
    ]
    parts += kinds_tables(rows, "group", GROUPS, SHOWN)
    parts += ["<h2>What the columns are</h2>", facts(EXPLAINED)]
    return [*parts, "<h2>Setting, machine and versions</h2>", origin(record)]
