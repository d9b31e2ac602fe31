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
FULL = "full"
"""Name of the row of the full run."""
QUALITIES = {
    "psnr_fine_mean": "PSNR to the exact solution (dB)",
    "psnr_mean": "PSNR to the full run (dB)",
}
COSTS = {
    "calls": "network calls of each branch (runs of the block stack)",
    "time": "processor time, as a share of the full run's",
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


def collect_points(
    rows: Sequence[Mapping[str, Any]], cost: str, quality: str = "psnr_mean"
) -> list[Point]:
    """The rows that have both this cost and this quality; the full run is no point."""
    return [
        Point(row["name"], row["group"], float(row[cost]), float(row[quality]))
        for row in rows
        if row.get(quality) is not None and row.get(cost) is not None and row["name"] != FULL
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
    """Draw PSNR on both axes against network calls, and against the share of processor time.

    The full run's own distance to the exact solution is a line. An axis that no row has is left
    out.

    Args:
        rows: Flat records with `name, group, calls, processor_speedup, psnr_mean,
            psnr_fine_mean`; rows without one of them are left out.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: Whether it is for a dark page.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    timed = [
        {**row, "time": 1.0 / row["processor_speedup"]}
        for row in rows
        if row.get("processor_speedup")
    ]
    full: Mapping[str, Any] = next((row for row in rows if row["name"] == FULL), {})
    shown = [key for key in QUALITIES if collect_points(timed, "calls", key)] or ["psnr_mean"]
    figure = new_figure(13, 6.4 * len(shown), dark=dark, wanted_by="write_pareto_plot")
    panels = figure.mpl.subplots(len(shown), len(COSTS), sharey="row", squeeze=False)
    for quality, line in zip(shown, panels, strict=True):
        for (cost, said), panel in zip(COSTS.items(), line, strict=True):
            _draw_panel(figure, panel, collect_points(timed, cost, quality), full.get(quality))
            panel.set_xlabel(said)
            figure.style_axis(panel)
        line[0].set_ylabel(QUALITIES[quality])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.mpl.legend(
        handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor=figure.ink
    )
    figure.set_title(title)
    return figure.save(path)


def _draw_panel(figure: Figure, axis: Any, points: Sequence[Point], full: float | None) -> None:
    """All points, the frontier, the full run's own quality, and the names of the best."""
    if full is not None:
        axis.axhline(full, color=COLOURS["plain"], linestyle=":", linewidth=1.2, label="full run")
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
