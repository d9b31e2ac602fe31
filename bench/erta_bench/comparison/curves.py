"""The plot of `erta bench peers`: quality against network calls, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import KINDS, find_leaders, is_comparable
from erta_framework.report import Figure, new_figure

COLOURS = {
    "ours": "#c2255c",
    "peer": "#f2a33a",
    "composed": "#1f9d78",
    "plain": "#7a8794",
    "oracle": "#6b4fbb",
}
MARKS = {"ours": "o", "peer": "^", "composed": "D", "plain": "s", "oracle": "*"}
NAMED: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "ours": (1, {"xytext": (0, 5), "ha": "right"}),
    "peer": (-1, {"xytext": (0, -7), "ha": "center", "va": "top"}),
}
"""Kinds whose best rows are named: at which end of the error bar, and how placed there."""
APART = 0.16
"""Calls between marks of different kinds, so that error bars do not hide one another."""


def write_curves_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", dark: bool = False
) -> Path:
    """Draw PSNR against network calls: every row as a mark, the best of each kind as a line.

    Error bars are one standard deviation over all samples of the best row.

    Args:
        rows: Flat records of `erta bench peers`.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: Whether it is for a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(12, 6.4, dark=dark, wanted_by="write_curves_plot")
    axis = figure.mpl.subplots()
    steps = int(next(row for row in rows if row.get("budget") is None)["steps"])
    found = find_leaders(rows)
    budgets = [standing.budget for standing in found]
    axis.set_xticks(budgets)
    axis.set_xlim(max(0, min(budgets) - 5), max(budgets) + 2)  # names need room on the left
    for place, kind in enumerate(KINDS):
        shift = (place - (len(KINDS) - 1) / 2) * APART
        marks = [
            (row["budget"] + shift, row["psnr_mean"])
            for row in rows
            if row.get("kind") == kind and is_comparable(row, steps)
        ]
        best = [(s.budget + shift, s.best[kind]) for s in found if kind in s.best]
        if best:
            _draw_kind(figure, axis, kind, marks, best)
    axis.set_xlabel("network calls of each branch")
    axis.set_ylabel("PSNR against the full run (dB)")
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    figure.style_axis(axis)
    figure.set_title(title)
    return figure.save(path)


def _draw_kind(
    figure: Figure,
    axis: Any,
    kind: str,
    marks: Sequence[tuple[float, float]],
    best: Sequence[tuple[float, Mapping[str, Any]]],
) -> None:
    """All rows of a kind as faint marks, and a line through the best at each number of calls."""
    axis.scatter(
        [x for x, _ in marks],
        [psnr for _, psnr in marks],
        color=COLOURS[kind],
        marker=MARKS[kind],
        s=18,
        alpha=0.45,
        linewidths=0,
        zorder=2,
    )
    axis.errorbar(
        [x for x, _ in best],
        [row["psnr_mean"] for _, row in best],
        yerr=[row["psnr_std"] for _, row in best],
        label=f"{KINDS[kind]}, best",
        color=COLOURS[kind],
        marker=MARKS[kind],
        markersize=6,
        linewidth=1.4,
        linestyle=":" if kind == "oracle" else "-",
        capsize=3,
        elinewidth=0.9,
        zorder=3,
    )
    if kind not in NAMED:
        return
    end, placing = NAMED[kind]
    for x, row in best:
        at = (x, row["psnr_mean"] + end * row["psnr_std"])
        figure.label_point(axis, row["name"], at, **placing)
