"""What the trained models get right."""

from __future__ import annotations

from tables.data import Record
from tables.markdown import format_caption, render_table


def render_accuracy(record: Record) -> str:
    """What the reference model gets right."""
    lines = [
        [
            row["name"],
            f"{row['right']} of {row['samples']}",
            f"{row['accuracy']:.1%}",
            f"{row['target']:.0%}",
            f"{row['rendered']:.1%}",
            f"{row['chance']:.1%}",
        ]
        for row in record["rows"]
    ]
    headings = ["", "right", "share", "asked for", "of rendered videos", "by chance"]
    return f"{render_table(headings, lines)}\n\n{format_caption(record)}"


def render_image_accuracy(record: Record) -> str:
    """What the image models get right."""
    lines = [
        [
            f"{row['model']}: {row['name']}",
            f"{row['accuracy']:.1%}",
            f"{row['rendered']:.1%}",
            f"{row['chance']:.1%}",
        ]
        for row in record["rows"]
    ]
    headings = ["", "share", "of rendered images", "by chance"]
    return f"{render_table(headings, lines)}\n\n{format_caption(record)}"
