"""The Pareto plot of a comparison: quality against cost, and the rows that none beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erta_framework.report import Figure, new_figure

COLOURS = {"plain": "#7a8794", "policy": "#2f6fde", "combination": "#1f9d78", "other": "#f2a33a"}
MARKS = {"plain": "s", "policy": "o", "combination": "D", "other": "^"}
NAMES = {
    "plain": "fewer steps",
    "policy": "policies",
    "combination": "combinations",
    "other": "other projects' caches",
}

APART = 0.05
"""Least distance between two names, as a share of the quality range; lower rows go unnamed."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row: what it costs and how good it is.

    Attributes:
        name: Name of the row.
        group: Key of its group in `NAMES`.
        cost: Less is better.
        quality: More is better.
    """

    name: str
    group: str
    cost: float
    quality: float


def collect_points(rows: Sequence[Mapping[str, Any]], cost: str) -> list[Point]:
    """The rows that have both this cost and a PSNR."""
    return [
        Point(row["name"], row["group"], float(row[cost]), float(row["psnr_mean"]))
        for row in rows
        if row.get("psnr_mean") is not None and row.get(cost) is not None
    ]


def find_frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in cost and quality at once, cheapest first.

    Example:
        >>> a, b, c = Point("a", "", 1, 30), Point("b", "", 2, 29), Point("c", "", 2, 40)
        >>> [point.name for point in find_frontier([a, b, c])]
        ['a', 'c']
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def write_pareto_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", dark: bool = False
) -> Path:
    """Draw PSNR against network calls, and against the share of the full run's processor time.

    Args:
        rows: Flat records with `name, group, calls, processor_speedup, psnr_mean`; rows without
            one of them are left out.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: Whether it is for a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(13, 6.4, dark=dark, wanted_by="write_pareto_plot")
    left, right = figure.mpl.subplots(1, 2, sharey=True)
    timed = [
        {**row, "time": 1.0 / row["processor_speedup"]}
        for row in rows
        if row.get("processor_speedup")
    ]
    _draw_panel(figure, left, collect_points(timed, "calls"))
    _draw_panel(figure, right, collect_points(timed, "time"))
    left.set_xlabel("network calls of each branch (runs of the block stack)")
    left.set_ylabel("PSNR against the full run (dB)")
    right.set_xlabel("processor time, as a share of the full run's")
    for axis in (left, right):
        figure.style_axis(axis)
    handles, labels = left.get_legend_handles_labels()
    figure.mpl.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=figure.ink
    )
    figure.set_title(title)
    return figure.save(path)


def _draw_panel(figure: Figure, axis: Any, points: Sequence[Point]) -> None:
    """All points, the frontier as a line, and the names of the best of it."""
    for group, name in NAMES.items():
        own = [point for point in points if point.group == group]
        if own:
            axis.scatter(
                [p.cost for p in own],
                [p.quality for p in own],
                label=name,
                color=COLOURS[group],
                marker=MARKS[group],
                s=38,
                alpha=0.85,
                zorder=3,
            )
    frontier = find_frontier(points)
    axis.step(
        [p.cost for p in frontier],
        [p.quality for p in frontier],
        where="post",
        color=figure.ink,
        linewidth=1.1,
        linestyle="--",
        label="not beaten in both",
        zorder=2,
    )
    axis.margins(x=0.08, y=0.06)
    # nothing lies above and to the left of the frontier: that is where its names go
    costs = [point.cost for point in points] or [0.0]
    axis.set_xlim(left=max(0.0, min(costs) - 0.6 * (max(costs) - min(costs) or 1.0)))
    lowest, highest = axis.get_ylim()
    named = float("inf")
    for point in reversed(frontier):
        if named - point.quality >= APART * (highest - lowest):
            place = {"xytext": (-7, 4), "ha": "right"}
            figure.label_point(axis, point.name, (point.cost, point.quality), **place)
            named = point.quality
