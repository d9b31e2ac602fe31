"""Parts of a benchmark's HTML page, in the style of the demo's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from erta_framework.report.html import facts

Record = Mapping[str, Any]


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
