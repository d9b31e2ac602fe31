"""The plot of `erta bench peers`: quality against network calls on both axes, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import (
    KINDS,
    TO_EXACT,
    TO_FULL,
    Axis,
    find_leaders,
    is_comparable,
)
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

BELOW = 8.0
"""How far below the least of the best rows a panel goes, in dB; rows further down are not shown."""


def write_curves_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", dark: bool = False
) -> Path:
    """Draw PSNR against network calls, to the exact solution and to the full run.

    Every row is a mark, the best of each kind a line. Error bars are one standard deviation over
    all samples of the best row, and small crosses its worst sample. A dashed line is the full run's
    own distance to the exact solution. Records that do not know that one show the full run alone.
    Rows far below the best are not shown.

    Args:
        rows: Flat records of `erta bench peers`.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: Whether it is for a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    known = any(find.best for find in find_leaders(rows, TO_EXACT))
    axes = (TO_EXACT, TO_FULL) if known else (TO_FULL,)
    figure = new_figure(8 * len(axes) + 2, 6.4, dark=dark, wanted_by="write_curves_plot")
    panels = figure.mpl.subplots(1, len(axes), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_axis(figure, panel, rows, axis)
    panels[0].legend(
        loc="upper left", bbox_to_anchor=(0.0, -0.11), ncols=3, frameon=False, fontsize=9
    )
    figure.set_title(title)
    return figure.save(path)


def _draw_axis(figure: Figure, panel: Any, rows: Sequence[Mapping[str, Any]], axis: Axis) -> None:
    """All rows on one axis, and the full run as a line."""
    full = next(row for row in rows if row.get("budget") is None)
    found = find_leaders(rows, axis)
    budgets = [standing.budget for standing in found]
    panel.set_xticks(budgets)
    panel.set_xlim(max(0, min(budgets) - 5), max(budgets) + 2)  # names need room on the left
    if full.get(axis.mean) is not None:
        own = float(full[axis.mean])
        label = f"the full run, {full['steps']} calls"
        panel.axhline(own, color=COLOURS["plain"], linestyle="--", linewidth=1.2, label=label)
    for place, kind in enumerate(KINDS):
        shift = (place - (len(KINDS) - 1) / 2) * APART
        marks = [
            (row["budget"] + shift, row[axis.mean])
            for row in rows
            if row.get("kind") == kind
            and is_comparable(row, int(full["steps"]))
            and row.get(axis.mean) is not None
        ]
        best = [(s.budget + shift, s.best[kind]) for s in found if kind in s.best]
        if best:
            _draw_kind(figure, panel, axis, kind, marks, best)
    least = min((float(row[axis.mean]) for s in found for row in s.best.values()), default=0.0)
    panel.set_ylim(bottom=least - BELOW)
    panel.set_xlabel("network calls of each branch")
    panel.set_ylabel(f"PSNR against {axis.name} (dB)")
    figure.style_axis(panel)


def _draw_kind(
    figure: Figure,
    panel: Any,
    axis: Axis,
    kind: str,
    marks: Sequence[tuple[float, float]],
    best: Sequence[tuple[float, Mapping[str, Any]]],
) -> None:
    """All rows of a kind as faint marks, and a line through the best at each number of calls."""
    panel.scatter(
        [x for x, _ in marks],
        [psnr for _, psnr in marks],
        color=COLOURS[kind],
        marker=MARKS[kind],
        s=18,
        alpha=0.45,
        linewidths=0,
        zorder=2,
    )
    panel.errorbar(
        [x for x, _ in best],
        [row[axis.mean] for _, row in best],
        yerr=[row.get(axis.std) or 0.0 for _, row in best],
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
    worst = [(x, row[axis.worst]) for x, row in best if row.get(axis.worst) is not None]
    panel.scatter(
        [x for x, _ in worst],
        [psnr for _, psnr in worst],
        color=COLOURS[kind],
        marker="x",
        s=20,
        linewidths=0.9,
        zorder=3,
    )
    if kind not in NAMED:
        return
    end, placing = NAMED[kind]
    for x, row in best:
        at = (x, row[axis.mean] + end * float(row.get(axis.std) or 0.0))
        figure.label_point(panel, row["name"], at, **placing)
