"""Markdown of tables, and the words that every table shares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tables.data import Record


def render_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right-aligned."""
    rules = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, rules, *rows))


def render_words(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of words."""
    return render_table(headings, rows).replace("---:", "---", len(headings))


def escape_cell(text: str | None) -> str:
    """Text with whatever would break a table's cell escaped."""
    return (text or "").replace("|", "\\|").replace("\n", " ")


def format_caption(record: Record) -> str:
    """The origin of numbers: command, machine, versions and date."""
    machine, versions = record["machine"], record["versions"]
    place = machine.get("accelerator") or machine.get("processor") or machine.get("system")
    cores = f", {machine['cores']} cores" if machine.get("cores") else ""
    software = ", ".join(f"{name} {held}" for name, held in versions.items())
    return f"`{record['command']}`, {record['date']}, {place}{cores}; {software}."


def join_numbers(numbers: Sequence[int]) -> str:
    """Numbers in words: `25, 17 and 12`."""
    *first, last = (str(number) for number in numbers)
    return f"{', '.join(first)} and {last}" if first else last
