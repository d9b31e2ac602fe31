"""The HTML page of a benchmark: its rows as tables, its plot, and where the numbers come from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from erta_framework.report import embed_image, render_page

Record = Mapping[str, Any]
Columns = Mapping[str, tuple[str, str]]
"""Heading and number format of each column, by the key of the rows."""

ODD: Columns = {
    "name": ("", "{}"),
    "budget": ("asked for", "{}"),
    "status": ("status", "{}"),
    "detail": ("why", "{}"),
}


class Plot(Protocol):
    """Draws rows into a file, for light or for dark pages."""

    def __call__(
        self, rows: Sequence[Record], path: Path, *, title: str, dark: bool = False
    ) -> Path: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """A value as the page shows it.

    Attributes:
        text: The formatted value; a dash where the row has none.
        is_best: Whether it is the largest of its table.
    """

    text: str
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column.

    Attributes:
        heading: Its name.
        is_text: Whether it holds words, which are aligned left.
    """

    heading: str
    is_text: bool


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as the page shows them; the first column names them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class PageSection:
    """The tables of one number of network calls, by the name of the kind."""

    budget: int
    tables: Mapping[str, Table]


def write_bench_page(
    record: Record,
    folder: str | Path,
    *,
    title: str,
    intro: str,
    plot: Plot,
    plot_name: str,
    note: str,
    sections: Sequence[PageSection],
    explained: Mapping[str, str],
    leaders: Table | None = None,
    full: Table | None = None,
) -> Path:
    """Write `report.html`, which needs no other file, and its plot beside it.

    Args:
        record: A benchmark's record.
        folder: Where to; made if need be.
        title: Heading of page and plot.
        intro: A sentence under the heading.
        plot: Draws the rows.
        plot_name: File name of the plot.
        note: What the plot shows.
        sections: The tables of each number of network calls.
        explained: What the columns mean.
        leaders: Who leads at each number of calls.
        full: The full run.

    Returns:
        The page.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = record["rows"]
    light = embed_image(plot(rows, folder / plot_name, title=title))
    with tempfile.TemporaryDirectory() as scratch:
        dark = embed_image(plot(rows, Path(scratch) / "dark.png", title=title, dark=True))
    values = {
        "title": title,
        "intro": intro,
        "plot_light": light,
        "plot_dark": dark,
        "note": note,
        "leaders": leaders,
        "full": full,
        "sections": sections,
        "odd": make_table([row for row in rows if row.get("status") != "measured"], ODD),
        "explained": explained,
        "origin": describe_origin(record),
    }
    target = folder / "report.html"
    page = render_page("bench.html", values, package="erta_bench.core", wanted_by="--report")
    target.write_text(page, encoding="utf-8")
    return target


def make_sections(
    rows: Sequence[Record],
    key: str,
    kinds: Mapping[str, str],
    columns: Columns,
    by: str = "psnr_mean",
) -> list[PageSection]:
    """A section for each number of calls, with a table for each kind, the best row first.

    Args:
        rows: Flat records; those without a PSNR are left out.
        key: What tells kinds apart, such as `"group"`.
        kinds: Headings by kind, in order.
        columns: The columns of the tables.
        by: Key of what rows are sorted by, the largest first; those without it come last.
    """
    sections = []
    for budget in dict.fromkeys(row["budget"] for row in rows if row.get("budget")):
        measured = [
            row for row in rows if row.get("budget") == budget and row.get("psnr_mean") is not None
        ]
        measured.sort(key=lambda row: (row.get(by) is None, -float(row.get(by) or 0.0)))
        members = {
            name: [row for row in measured if row[key] == kind] for kind, name in kinds.items()
        }
        tables = {name: make_table(own, columns, best=by) for name, own in members.items() if own}
        sections.append(PageSection(budget, tables))
    return sections


def make_table(rows: Sequence[Record], columns: Columns, best: str = "") -> Table:
    """Rows as a table.

    Args:
        rows: Flat records; the first column names them.
        columns: The columns.
        best: Key whose largest value is marked.
    """
    top = max((row[best] for row in rows if row.get(best) is not None), default=None)
    heads = [
        Column(heading, is_text=any(isinstance(row.get(key), str) for row in rows))
        for key, (heading, _) in columns.items()
    ]
    lines = []
    for row in rows:
        line = []
        for key, (_, form) in columns.items():
            value = row.get(key)
            text = "–" if value in (None, "") else form.format(value)
            line.append(Cell(text, is_best=key == best and value is not None and value == top))
        lines.append(line)
    return Table(heads, lines)


def find_full_run(record: Record) -> Record:
    """The row of the full run: the one for which no number of calls was asked."""
    found: Record = next(row for row in record["rows"] if row.get("budget") is None)
    return found


def describe_samples(record: Record, what: str) -> str:
    """How many samples were measured, and in which pipeline, such as `"8 held-out prompts, ..."`.

    Args:
        record: A benchmark's record.
        what: What `prompts` counts: `"prompts"` or `"samples"`.
    """
    full = find_full_run(record)
    sets = "seed set" if full["seeds"] == 1 else "seed sets"
    pipeline = record["settings"].get("pipeline", "WanPipeline")
    return (
        f"{full['prompts']} held-out {what}, {full['seeds']} {sets}, through the unmodified "
        f"{pipeline} of diffusers."
    )


def describe_origin(record: Record) -> dict[str, str]:
    """Command, date, machine and versions of a record."""
    facts = {**record["machine"], **record["versions"]}
    return {
        "command": str(record["command"]),
        "date": str(record["date"]),
        **{key: str(value) for key, value in facts.items() if value is not None},
    }
