"""The front plot: what every budget costs and gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_framework.budgets import FrontRow
from erta_framework.report._figure import ACCENT, COMPUTED, LINES, new_figure


def write_front_plot(
    title: str, rows: Sequence[FrontRow], path: str | Path, *, dark: bool = False
) -> Path:
    """Draw a front: predicted error, measured PSNR where there is any, and the schedules.

    Args:
        title: Heading.
        rows: The front, one row a number of network calls.
        path: Where to; the ending gives the format.
        dark: Whether it is for a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    measured = [row for row in rows if row.psnr is not None and math.isfinite(row.psnr)]
    panels = 3 if measured else 2
    figure = new_figure(9, 2.9 * panels + 0.4, dark=dark, wanted_by="write_front_plot")
    from matplotlib.ticker import MaxNLocator

    axes = list(figure.mpl.subplots(panels, 1, sharex=True))
    _draw_predicted(axes[0], rows)
    if measured:
        _draw_measured(axes[1], measured)
    _draw_schedules(axes[-1], rows)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        figure.style_axis(axis)
    figure.set_title(title)
    return figure.save(path)


def _draw_predicted(axis: Any, rows: Sequence[FrontRow]) -> None:
    positive = [row for row in rows if row.predicted > 0]  # NaN and 0 have no place on a log axis
    axis.plot(
        [row.calls for row in positive],
        [row.predicted for row in positive],
        color=COMPUTED,
        marker="o",
        markersize=3,
    )
    axis.set_yscale("log")
    axis.set_ylabel("predicted error")


def _draw_measured(axis: Any, rows: Sequence[FrontRow]) -> None:
    axis.errorbar(
        [row.calls for row in rows],
        [row.psnr for row in rows],
        yerr=[row.psnr_std for row in rows],
        color=LINES[0],
        marker="o",
        capsize=3,
        label="planned",
    )
    better = [row for row in rows if (row.refined_psnr or 0.0) > (row.psnr or 0.0)]
    if better:
        calls, refined = [row.calls for row in better], [row.refined_psnr for row in better]
        axis.plot(calls, refined, "^", color=ACCENT, label="refined")
        axis.legend(frameon=False)
    axis.set_ylabel("measured PSNR (dB)")


def _draw_schedules(axis: Any, rows: Sequence[FrontRow]) -> None:
    axis.scatter(
        [row.calls for row in rows for _ in row.computed],
        [step for row in rows for step in row.computed],
        s=5,
        marker="s",
        color=COMPUTED,
    )
    axis.invert_yaxis()
    axis.set_ylabel("computed step\n(0 is pure noise)")
    axis.set_xlabel(f"network calls a branch, of {rows[0].num_steps} steps")
