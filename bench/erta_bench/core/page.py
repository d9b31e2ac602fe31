"""Parts of a benchmark's HTML page, in the style of the demo's report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

from erta_framework.report import document, facts, inlined

Record = Mapping[str, Any]
ODD = {
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


def write_report(
    record: Record,
    folder: str | Path,
    *,
    title: str,
    plot: Plot,
    name: str,
    note: str,
    body: Callable[[str], Sequence[str]],
) -> Path:
    """Write `report.html` and a plot beside it; the page needs nothing beside it.

    Args:
        record: A benchmark's record.
        folder: Where to; made if need be.
        title: Heading of page and plot.
        plot: Draws the rows.
        name: File name of the plot.
        note: What the plot shows.
        body: The parts of the page, given the plot as HTML.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    light = inlined(plot(record["rows"], folder / name, title=title))
    with tempfile.TemporaryDirectory() as scratch:
        dark = inlined(plot(record["rows"], Path(scratch) / "dark.png", title=title, dark=True))
    figure = (
        f'<figure><div class="scroll"><picture><source srcset="{dark}" '
        f'media="(prefers-color-scheme: dark)"><img class="plot" src="{light}" '
        f'alt="{escape(note, quote=True)}"></picture></div><figcaption>{escape(note)}</figcaption>'
        "</figure>"
    )
    target = folder / "report.html"
    target.write_text(document(title, body(figure)), encoding="utf-8")
    return target


def kinds_tables(
    rows: Sequence[Record],
    key: str,
    kinds: Mapping[str, str],
    columns: Mapping[str, tuple[str, str]],
) -> list[str]:
    """A table for each number of calls and kind, best PSNR first, and the rows that lack one.

    Args:
        rows: Flat records.
        key: What tells kinds apart, such as `"group"`.
        kinds: Headings by kind, in order.
        columns: Heading and number format by key.
    """
    parts: list[str] = []
    for budget in dict.fromkeys(row["budget"] for row in rows if row.get("budget")):
        parts.append(f"<h2>{budget} network calls</h2>")
        own = [row for row in rows if row.get("budget") == budget]
        for kind, name in kinds.items():
            members = [r for r in own if r[key] == kind and r.get("psnr_mean") is not None]
            members.sort(key=lambda row: -float(row["psnr_mean"]))
            if members:
                parts.append(f"<h3>{escape(name)}</h3>")
                parts.append(rows_table(members, columns, best="psnr_mean"))
    odd = [row for row in rows if row.get("status") != "measured"]
    return [*parts, "<h2>Not as asked for</h2>", rows_table(odd, ODD)] if odd else parts


def rows_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]], best: str = ""
) -> str:
    """Rows as a table.

    Args:
        rows: Flat records; the first column names them.
        columns: Heading and number format by key.
        best: Key whose largest value is marked.
    """
    top = max((row[best] for row in rows if row.get(best) is not None), default=None)
    head = "".join(f"<th>{escape(heading)}</th>" for heading, _ in columns.values())
    lines = []
    for row in rows:
        cells = []
        for place, (key, (_, form)) in enumerate(columns.items()):
            value = row.get(key)
            text = "–" if value in (None, "") else escape(form.format(value))
            if key == best and value is not None and value == top:
                text = f"<b>{text}</b>"
            cells.append(f"<th>{text}</th>" if place == 0 else f"<td>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def origin(record: Record) -> str:
    """Command, date, machine and versions of a record."""
    return facts(
        {
            "command": str(record["command"]),
            "date": str(record["date"]),
            **{k: str(v) for k, v in record["machine"].items() if v is not None},
            **{k: str(v) for k, v in record["versions"].items()},
        }
    )
