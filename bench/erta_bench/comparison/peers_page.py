"""The report of `erta bench peers`: who leads, a table for each number of calls, and the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import EFFICIENCY, KINDS
from erta_bench.comparison._leaders import Leaders as Standing
from erta_bench.comparison._leaders import find_leaders as standings
from erta_bench.comparison.curves import curves_plot
from erta_bench.core.page import kinds_tables, origin, rows_table, write_report
from erta_framework.report import facts

Record = Mapping[str, Any]

SHOWN = {
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
LEADS = {
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
    "Lines join the best row of each kind; bars are one standard deviation over samples."
)
EXPLAINED = {
    "ours": "Methods that are ours, whole or in their decisive part.",
    "peers": "Published methods as published, and other projects' caches.",
    "recombined": "Parts of published methods that compose, and plain solvers on the sigmas that a "
    "planned schedule computes at. They count neither as peers nor as ours.",
    "oracle": "The same weights, fitted to the very samples that are measured: what calibration on "
    "other prompts loses. Measured on the first batch of each seed set.",
    "calls": "Network calls of each guidance branch a sample. With other projects' caches, which "
    "skip blocks inside a network that is called at every step: runs of the block stack.",
    "PSNR, SSIM": "Against the full run from the same noise, over all samples; ± sets is the "
    "deviation of the means of the seed sets.",
    "as prompted": "Samples whose pixels show everything that the prompt says.",
    "PSNR, fine": "Against second-order steps on a grid twice as fine: nearly the exact flow.",
    "efficiency": "Processor seconds of the full run over those of the row, over steps per call.",
    "work": "What the linear and convolution layers computed, as a share of the full run's.",
    "bytes held": "Bytes a sample held between steps, beyond as many plain steps.",
    "calibration": "Network calls of each branch, over all samples, that a profile took.",
    "solved": "The setting that was solved for, so that rows have equally many calls.",
}


def write_peers_page(record: Record, folder: str | Path) -> Path:
    """Write `report.html` and `peers.png`; the page needs nothing beside it.

    Args:
        record: What `erta bench peers --json` writes.
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
        plot=curves_plot,
        name="peers.png",
        note=NOTE,
        body=lambda figure: body(record, title, figure),
    )


def heading(record: Record) -> str:
    """What was compared, in one line."""
    full = full_row(record)
    budgets = sorted({row["budget"] for row in record["rows"] if row.get("budget")}, reverse=True)
    *most, last = map(str, budgets)
    asked = f"{', '.join(most)} and {last}" if most else last
    return f"Everyone on {record['settings']['model']}, {asked} of {full['steps']} network calls"


def full_row(record: Record) -> Record:
    """The row of the full run."""
    found: Record = next(row for row in record["rows"] if row.get("budget") is None)
    return found


def lead_row(standing: Standing) -> Record:
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


def body(record: Record, title: str, figure: str) -> list[str]:
    """The parts of the page."""
    rows: Sequence[Record] = record["rows"]
    full = full_row(record)
    sets = "seed set" if full["seeds"] == 1 else "seed sets"
    samples = f"{full['prompts']} held-out samples, {full['seeds']} {sets}"
    loop = f"through the unmodified {record['settings']['pipeline']} of diffusers"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(samples)}, {escape(loop)}. The efficiency aimed at is '
        f"{EFFICIENCY:g}.</p>",
        rows_table([lead_row(standing) for standing in standings(rows)], LEADS),
        figure,
        "<h2>Full run</h2>",
        rows_table([full], SHOWN),
    ]
    parts += kinds_tables(rows, "kind", KINDS, SHOWN)
    parts += ["<h2>What the columns and kinds are</h2>", facts(EXPLAINED)]
    return [*parts, "<h2>Setting, machine and versions</h2>", origin(record)]
