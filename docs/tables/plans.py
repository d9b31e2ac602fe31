"""The tables of `erta bench study plans`: plans of full steps at equal work."""

from __future__ import annotations

from collections.abc import Mapping

from erta_bench.comparison import Axis
from tables.data import Record
from tables.rows import AXES, read_mean
from tables.studies import QUALITY, Column, format_number, format_text, name_model, render_study

PLANS: Mapping[str, Column] = {
    "full steps": format_text("full"),
    "refreshed steps": format_text("refreshed"),
    "work": format_number("work", 3),
    **QUALITY,
}


def render_plan_study(*records: Record) -> str:
    """Every plan, and where long gaps first are ahead of the others, a table for each model."""
    return "\n\n".join([render_study(*records, columns=PLANS), *map(describe_order, records)])


def describe_order(record: Record) -> str:
    """The order of gaps and what refreshing brings, in one line for each model."""
    return "\n".join(describe_order_to(record, axis) for axis in AXES)


def describe_order_to(record: Record, axis: Axis) -> str:
    """The same of one axis."""
    found = {(row["name"], bool(row["refreshed"])): row for row in record["rows"]}

    def read(name: str, refreshed: bool = False) -> float:
        return read_mean(found[name, refreshed], axis)

    first, even = read("long gaps first"), read("even")
    return (
        f"* {name_model(record)}, to {axis.name}: long gaps first against an even plan "
        f"{first - even:+.1f} dB, "
        f"against long gaps last {first - read('long gaps last'):+.1f} dB; refreshed tokens "
        f"{read('long gaps first', True) - first:+.1f} dB with long gaps first, "
        f"{read('even', True) - even:+.1f} dB with an even plan."
    )
