"""The tables of `erta bench families`: which cache works on which pipeline."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import escape_cell, format_caption, render_table, render_words

KINDS = ("works", "no-effect", "error", "not installed")
"""What a cache may do on a family."""


def render_families(record: Record) -> str:
    """Which cache works on which family: how many, each pair, and why not."""
    cells = {(row["family"], row["method"]): row for row in record["rows"]}
    families, methods = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    kinds = [k for k in KINDS if any(row["status"] == k for row in record["rows"])]
    counts = []
    for method in methods:
        found = [cells[name, method]["status"] for name in families]
        helped = [r for r in record["rows"] if (r["method"], r["status"]) == (method, "works")]
        by_hand = sum(bool(row["detail"]) for row in helped)
        counts.append([method, *(str(found.count(kind)) for kind in kinds), str(by_hand or "")])
    pairs = [
        [
            name,
            escape_cell(cells[name, methods[0]].get("modules") or "–"),
            *(format_outcome(cells[name, method]) for method in methods),
        ]
        for name in families
    ]
    return "\n\n".join(
        [
            render_table([f"of {len(families)} families", *kinds, "works by hand"], counts),
            format_caption(record),
            "## Family by family",
            "A percentage is the share of the layers' work that was still done where it works.",
            render_table(["", "modules", *methods], pairs),
            "## Why not",
            render_words(["Method", "What it said", "Families"], list_reasons(record)),
        ]
    )


def format_outcome(row: Row) -> str:
    """A cell of the table of families."""
    return f"{row['work']:.0%}" if row["status"] == "works" else str(row["status"])


def list_reasons(record: Record) -> list[list[str]]:
    """Why a method does not work, with the families that it says so on."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in record["rows"]:
        if row["status"] != "works":
            found.setdefault((row["method"], row["detail"]), []).append(row["family"])
    return [
        [method, "`" + escape_cell(said).replace("`", "'") + "`", ", ".join(names)]
        for (method, said), names in sorted(found.items())
    ]
