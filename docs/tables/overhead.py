"""The tables of `erta bench overhead` and `erta bench attach-overhead`: the engine's own time."""

from __future__ import annotations

from tables.data import MissingDataError, Record, find_command
from tables.markdown import format_caption, render_table


def render_overhead(record: Record) -> str:
    """Microseconds of the engine a step, and the synchronisations of a static schedule."""
    timed = [row for row in record["rows"] if row.get("us_per_step") is not None]
    static = [row for row in record["rows"] if row.get("static_syncs") is not None]
    if not timed or not static:
        raise MissingDataError(
            f"overhead.json lacks us_per_step or static_syncs; write it with "
            f"`{find_command('overhead')}`"
        )
    keys = ("us_per_step", "us_per_step_least", "us_per_step_bare")
    lines = [
        [str(row["policies"]), str(row["branches"]), *(f"{row[key]:.0f}" for key in keys)]
        for row in timed
    ]
    syncs = static[0]["static_syncs"]
    said = (
        "Microseconds a step; the median of the differences, and the difference of the fastest "
        f"runs. Values that a static schedule reads back from the device while sampling: {syncs}."
    )
    headings = ["policies", "branches", "engine adds", "fastest", "bare loop"]
    return "\n\n".join([render_table(headings, lines), said, format_caption(record)])


def render_sites(record: Record) -> str:
    """Microseconds that a gate adds to a visit of a module that does nothing."""
    keys = ("us_per_visit", "us_all_told", "us_all_told_least", "times_bare", "us_a_request")
    lines = [[row["name"], *(f"{row[key]:.2f}" for key in keys)] for row in record["rows"]]
    headings = ["plan", "a visit", "all told", "fastest", "in modules", "once a request"]
    row = record["rows"][0]
    said = (
        "Processor microseconds that a visit takes more than without gates, with "
        f"{row['places']} places. A visit is what happens inside the network call; all told is "
        "that with asking the policy, "
        "setting its plan, keeping and reporting. One visit of a module that does nothing takes "
        f"{row['us_bare']:.1f} in the same run, and `in modules` is all told in such visits. "
        "Once a request each place is found and gets its gate; a pipeline does so when it is "
        "attached."
    )
    return "\n\n".join([render_table(headings, lines), said, format_caption(record)])


def render_attached(record: Record) -> str:
    """Microseconds a step that an attached engine adds to a pipeline whose network is free."""
    keys = ("us_per_step", "us_per_step_least", "us_per_step_processor", "us_per_step_plain")
    lines = [
        [
            row["pipeline"],
            str(row["policies"]),
            str(row["branches"]),
            *(f"{row[key]:.0f}" for key in keys),
        ]
        for row in record["rows"]
    ]
    headings = ["", "policies", "branches", "engine adds", "fastest", "processor", "plain pipeline"]
    said = (
        "Microseconds a step, opening and closing the request included: the median of the "
        "differences, the difference of the fastest requests, and the median in processor time."
    )
    return "\n\n".join([render_table(headings, lines), said, format_caption(record)])
