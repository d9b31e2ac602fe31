"""One table of many networks: who comes how near, a line for each number of network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erta_bench.comparison import (
    CLEAR,
    TO_EXACT,
    TO_FULL,
    Axis,
    Leaders,
    find_leaders,
    list_unclear,
)
from erta_bench.core.page import find_full_run
from erta_bench.galaxy import FILES
from tables.data import Record
from tables.markdown import render_table
from tables.peers import LED, render_goals, render_peers_summary
from tables.rows import DASH

HEADINGS = [
    "network",
    "samples",
    "calls",
    "full run",
    "ours",
    "best peer",
    "best plain",
    "best recombination",
    "ours, to the full run",
    "best peer, to the full run",
]
UNCLEAR = "†"
"""Marks a number that is as near to the exact solution as that is known itself."""
Pair = tuple[float | None, float | None]
"""Mean of all samples, and worst sample."""


def render_networks(*records: Record) -> str:
    """Distances of the best row of each kind, network by network; nothing without records."""
    if not records:
        return ""
    lines = [line for record in records for line in list_lines(record)]
    said = (
        "PSNR in dB to the exact solution, in the last two columns to the full run: mean of all "
        "samples / worst sample. The best of a line on its axis is bold. Ours is the row whose "
        "mean on that axis is best; of the other kinds the best mean and the best worst sample are "
        "shown, which may be of two rows."
    )
    if any(UNCLEAR in cell for line in lines for cell in line):
        said += f" {UNCLEAR} is within {CLEAR:.0f} dB of how exact the solution is."
    return f"{render_table(HEADINGS, lines)}\n\n{said}"


def list_lines(record: Record) -> list[list[str]]:
    """A line for each number of calls, most calls first."""
    full, rows = find_full_run(record), record["rows"]
    samples = str(full["prompts"] * full["seeds"])
    unclear = {row[TO_EXACT.mean] for row in list_unclear(record)}
    found = []
    for exact, to_full in zip(
        find_leaders(rows, TO_EXACT), find_leaders(rows, TO_FULL), strict=True
    ):
        own = read_pair(full, TO_EXACT)
        near = format_pairs([own, *(find_pair(exact, kind) for kind in ("ours", *LED))], unclear)
        far = format_pairs([find_pair(to_full, kind) for kind in ("ours", "peer")])
        found.append([record["settings"]["model"], samples, str(exact.budget), *near, *far])
    return found


def find_pair(leaders: Leaders, kind: str) -> Pair:
    """Best mean of a kind with its best worst sample; of ours both are of one row."""
    mean, worst = read_pair(leaders.best.get(kind, {}), leaders.axis)
    if kind == "ours":
        return mean, worst
    return mean, read_pair(leaders.safest.get(kind, {}), leaders.axis)[1]


def read_pair(row: Mapping[str, Any], axis: Axis) -> Pair:
    """Mean and worst sample of a row; None for what it does not hold."""
    return row.get(axis.mean), row.get(axis.worst)


def format_pairs(pairs: Sequence[Pair], unclear: set[float] | None = None) -> list[str]:
    """Cells `mean / worst`, the best of either bold.

    Args:
        pairs: The cells of one line on one axis.
        unclear: Means that are marked.

    Example:
        >>> format_pairs([(40.0, 31.0), (42.0, 30.0), (None, None)])
        ['40.0 / **31.0**', '**42.0** / 30.0', '–']
    """
    sides = zip(*pairs, strict=True)
    best = [max((each for each in side if each is not None), default=None) for side in sides]

    def show(value: float | None, top: float | None) -> str:
        if value is None:
            return DASH
        said = f"**{value:.1f}**" if value == top else f"{value:.1f}"
        return said + (UNCLEAR if unclear and value in unclear else "")

    return [
        DASH if mean is None else f"{show(mean, best[0])} / {show(worst, best[1])}"
        for mean, worst in pairs
    ]


def render_galaxies(*records: Record) -> str:
    """The table of the networks of galaxygrad, and which of them were not measured."""
    measured = {record["settings"]["model"].removesuffix("-noise") for record in records}
    missing = [name for name in (f"galaxy-{each}" for each in FILES) if name not in measured]
    said = f"Not measured: {', '.join(missing)}." if missing else ""
    return "\n\n".join(part for part in (render_networks(*records), said) if part)


def render_each(*records: Record) -> str:
    """Who leads on each network, and by which row, and the goals."""
    parts = [
        (f"### {record['settings']['model']}", render_peers_summary(record), render_goals(record))
        for record in records
    ]
    return "\n\n".join(text for part in parts for text in part)
