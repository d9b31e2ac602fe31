"""A picture of `erta bench peers`: quality against network calls, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erta_bench.comparison._leaders import KINDS
from erta_bench.comparison._leaders import find_leaders as standings
from erta_bench.comparison._leaders import is_comparable as comparable
from erta_framework.report import sheet

COLOURS = {
    "ours": "#c2255c",
    "peer": "#f2a33a",
    "composed": "#1f9d78",
    "plain": "#7a8794",
    "oracle": "#6b4fbb",
}
MARKS = {"ours": "o", "peer": "^", "composed": "D", "plain": "s", "oracle": "*"}
APART = 0.16
"""Calls between marks of different kinds, so that error bars do not hide one another."""


def curves_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "", dark: bool = False
) -> Path:
    """Draw PSNR against network calls: every row as a mark, the best of each kind as a line.

    Error bars are one standard deviation over all samples of the best row.

    Args:
        rows: Flat records of `erta bench peers`.
        path: Picture to write; its ending gives the format.
        title: Heading.
        dark: For dark pages.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    page = sheet(10, 6, dark=dark, wanted_by="curves_plot")
    axis = page.figure.subplots()
    draw(axis, rows, page.ink)
    axis.set_xlabel("network calls of each branch")
    axis.set_ylabel("PSNR against the full run (dB)")
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    page.style(axis)
    page.title(title)
    return page.write(path)


def draw(axis: Any, rows: Sequence[Mapping[str, Any]], ink: str) -> None:
    """Marks of all comparable rows, and a line through the best of each kind."""
    steps = int(next(row for row in rows if row.get("budget") is None)["steps"])
    found = standings(rows)
    budgets = [standing.budget for standing in found]
    axis.set_xticks(budgets)
    axis.set_xlim(min(budgets) - 3, max(budgets) + 2)
    for place, kind in enumerate(KINDS):
        shift = (place - (len(KINDS) - 1) / 2) * APART
        all_rows = [r for r in rows if r.get("kind") == kind and comparable(r, steps)]
        best = [(s.budget + shift, s.best[kind]) for s in found if kind in s.best]
        if not best:
            continue
        axis.scatter(
            [row["budget"] + shift for row in all_rows],
            [row["psnr_mean"] for row in all_rows],
            color=COLOURS[kind],
            marker=MARKS[kind],
            s=18,
            alpha=0.45,
            linewidths=0,
            zorder=2,
        )
        axis.errorbar(
            [where for where, _ in best],
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
        if kind in ("ours", "peer"):
            for where, row in best:
                axis.annotate(
                    row["name"],
                    (where, row["psnr_mean"]),
                    textcoords="offset points",
                    xytext=(-8, 6),
                    ha="right",
                    fontsize=7,
                    color=ink,
                )
