"""The picture of a front: what every budget costs and gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from erta_framework.budgets import FrontRow
from erta_framework.report._figure import sheet


def front_plot(title: str, rows: Sequence[FrontRow], path: str | Path) -> Path:
    """Draw a front: predicted error, measured PSNR where there is any, and the schedules.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    quality = [row for row in rows if row.psnr is not None and math.isfinite(row.psnr)]
    panels = 3 if quality else 2
    page = sheet(9, 2.9 * panels + 0.4, wanted_by="front_plot")
    from matplotlib.ticker import MaxNLocator

    from erta_framework.report._pictures import ACCENT, COMPUTED, LINES

    axes = list(page.figure.subplots(panels, 1, sharex=True))
    positive = [row for row in rows if row.predicted > 0]  # NaN and 0 have no place on a log axis
    axes[0].plot(
        [row.calls for row in positive],
        [row.predicted for row in positive],
        color=COMPUTED,
        marker="o",
        markersize=3,
    )
    axes[0].set_yscale("log")
    axes[0].set_ylabel("predicted error")
    if quality:
        calls = [row.calls for row in quality]
        axes[1].errorbar(
            calls,
            [row.psnr for row in quality],
            yerr=[row.psnr_std for row in quality],
            color=LINES[0],
            marker="o",
            capsize=3,
            label="planned",
        )
        better = [row for row in quality if (row.refined_psnr or 0.0) > (row.psnr or 0.0)]
        if better:
            axes[1].plot(
                [row.calls for row in better],
                [row.refined_psnr for row in better],
                "^",
                color=ACCENT,
                label="refined",
            )
            axes[1].legend(frameon=False)
        axes[1].set_ylabel("measured PSNR (dB)")
    axes[-1].scatter(
        [row.calls for row in rows for _ in row.computed],
        [step for row in rows for step in row.computed],
        s=5,
        marker="s",
        color=COMPUTED,
    )
    axes[-1].invert_yaxis()
    axes[-1].set_ylabel("computed step\n(0 is pure noise)")
    axes[-1].set_xlabel(f"network calls a branch, of {rows[0].num_steps} steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        page.style(axis)
    page.title(title)
    return page.write(path)
