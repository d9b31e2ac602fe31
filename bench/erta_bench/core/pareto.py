"""A picture of a comparison: quality against what it costs, and who nobody beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erta_framework.report import sheet

COLOURS = {"plain": "#7a8794", "policy": "#2f6fde", "combination": "#1f9d78", "other": "#f2a33a"}
MARKS = {"plain": "s", "policy": "o", "combination": "D", "other": "^"}
NAMES = {
    "plain": "fewer steps",
    "policy": "policies",
    "combination": "combinations",
    "other": "other projects' caches",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One row: what it costs, how good it is.

    Attributes:
        name, group: Of the row.
        cost: Less is better.
        quality: More is better.
    """

    name: str
    group: str
    cost: float
    quality: float


def points(rows: Sequence[Mapping[str, Any]], cost: str) -> list[Point]:
    """The rows that have both numbers."""
    return [
        Point(row["name"], row["group"], float(row[cost]), float(row["psnr_mean"]))
        for row in rows
        if row.get("psnr_mean") is not None and row.get(cost) is not None
    ]


def frontier(found: Sequence[Point]) -> list[Point]:
    """Those that no other beats in cost and quality at once, cheapest first.

    Example:
        >>> a, b, c = Point("a", "", 1, 30), Point("b", "", 2, 29), Point("c", "", 2, 40)
        >>> [point.name for point in frontier([a, b, c])]
        ['a', 'c']
    """
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cost, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def pareto_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", dark: bool = False
) -> Path:
    """Draw PSNR against network calls, and against the share of the full run's processor time.

    Args:
        rows: Flat records with `name, group, calls, processor_speedup, psnr_mean`; others are
            left out.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: For dark pages.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    page = sheet(13, 6.4, dark=dark, wanted_by="pareto_plot")
    left, right = page.figure.subplots(1, 2, sharey=True)
    timed = [
        {**row, "time": 1.0 / row["processor_speedup"]}
        for row in rows
        if row.get("processor_speedup")
    ]
    panel(left, points(timed, "calls"), page.ink)
    panel(right, points(timed, "time"), page.ink)
    left.set_xlabel("network calls of each branch (runs of the block stack)")
    left.set_ylabel("PSNR against the full run (dB)")
    right.set_xlabel("processor time, as a share of the full run's")
    for axis in (left, right):
        page.style(axis)
        axis.margins(x=0.08, y=0.06)
    handles, labels = left.get_legend_handles_labels()
    page.figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, labelcolor=page.ink
    )
    page.title(title)
    return page.write(path)


def panel(axis: Any, found: Sequence[Point], ink: str) -> None:
    """All points, the frontier as a line, and its names."""
    for group, name in NAMES.items():
        own = [point for point in found if point.group == group]
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
    best = frontier(found)
    axis.step(
        [p.cost for p in best],
        [p.quality for p in best],
        where="post",
        color=ink,
        linewidth=1.1,
        linestyle="--",
        label="not beaten in both",
        zorder=2,
    )
    for place, point in enumerate(best[-6:]):
        axis.annotate(
            point.name,
            (point.cost, point.quality),
            textcoords="offset points",
            xytext=(7, 6 if place % 2 else -12),
            fontsize=8,
            color=ink,
        )
