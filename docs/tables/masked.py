"""The tables of `erta bench masked` and `erta bench masked-speed`."""

from __future__ import annotations

from tables.data import Record, Row
from tables.markdown import format_caption, render_table


def render_masked(record: Record) -> str:
    """Valid share and different valid answers by rule and order, with what the network ran on."""
    rows: list[Row] = record["rows"]
    orders = list(dict.fromkeys(row["order"] for row in rows))
    table = render_table(
        ["rule", "rows", "work", "seconds", *orders],
        (
            format_rule(name, [row for row in rows if row["rule"] == name], orders)
            for name in dict.fromkeys(row["rule"] for row in rows)
        ),
    )
    settings = record["settings"]
    minutes = settings["training.seconds"] / 60
    trained = (
        f"Trained for {settings['training.steps']:,} steps in {minutes:.0f} minutes; "
        f"final loss {settings['training.loss']:.3f} nats a symbol, least possible "
        f"{settings['optimum']:.3f}."
    )
    return "\n\n".join([table, trained, format_caption(record)])


def format_rule(name: str, rows: list[Row], orders: list[str]) -> list[str]:
    """One rule: what it ran on, and `valid % (different)` in every order that it can run in."""
    by_order = {row["order"]: row for row in rows}
    cells = [
        f"{100 * by_order[order]['valid']:.1f} % ({by_order[order]['distinct']})"
        if order in by_order
        else "-"
        for order in orders
    ]
    spans = [format_span([row[key] for row in rows]) for key in ("rows_computed", "work")]
    return [name, *spans, format_span([row["seconds_ratio"] for row in rows]), *cells]


def format_span(values: list[float]) -> str:
    """A number, or the least and the largest where the orders differ.

    >>> format_span([0.5, 0.501]), format_span([0.5, 0.75])
    ('.50', '.50 to .75')
    """
    least, most = (f"{value:.2f}".removeprefix("0") for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def render_masked_speed(record: Record) -> str:
    """Speed-up of a call on part of the positions, beside the ideal."""
    settings = record["settings"]
    return "\n\n".join(
        [
            render_table(
                ["positions that run", "faster", "ideal", "reached"],
                (
                    [
                        f"{100 * row['share']:g} %",
                        f"{row['speedup']:.2f} x",
                        f"{row['ideal']:.2f} x",
                        f"{100 * row['reached']:.0f} %",
                    ]
                    for row in record["rows"]
                    if row["share"] is not None
                ),
            ),
            f"Random weights, length {settings['length']}, batch {settings['batch']}, width "
            f"{settings['width']}, {settings['layers']} layers, {settings['threads']} thread; "
            f"median processor seconds of {settings['repeats']} calls in turns.",
            format_caption(record),
        ]
    )
