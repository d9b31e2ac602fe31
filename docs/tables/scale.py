"""The tables of `erta bench scale` and `erta bench simulate`: many ranks."""

from __future__ import annotations

from tables.data import Record
from tables.markdown import format_caption, render_table


def render_scale(record: Record) -> str:
    """What a second process adds to a job, beside what the machine allows, and what is sent."""
    speed = [row for row in record["rows"] if row.get("efficiency") is not None]
    sent = [row for row in record["rows"] if row.get("collectives_per_step") is not None]
    settings = record["settings"]
    lines = [
        [
            str(row["processes"]),
            f"{row['machine_limit']:.2f}",
            f"{row['efficiency']:.2f} ({row['efficiency_least']:.2f} to "
            f"{row['efficiency_most']:.2f})",
            f"{row['efficiency_processor']:.2f}",
        ]
        for row in speed
    ]
    traffic = [
        [
            row["name"],
            f"{row['collectives_per_step']:.3g}",
            f"{row['bytes_per_step']:.3g}",
            str(row["collectives_at_the_start"]),
        ]
        for row in sent
    ]
    said = (
        f"Medians of {speed[0]['rounds']} rounds, with the least and the most. The load average "
        f"was {settings['load_before']:.1f} before and {settings['load_after']:.1f} after."
    )
    return "\n\n".join(
        [
            render_table(["processes", "machine limit", "efficiency", "in processor time"], lines),
            said,
            render_table(
                ["two ranks", "collectives a step", "bytes a step", "at the start"], traffic
            ),
            format_caption(record),
        ]
    )


def render_simulation(record: Record) -> str:
    """What a job of many ranks loses, waits for, and asks of the file system."""
    rows = record["rows"]
    course = [
        [
            row["name"],
            str(row["deaths"]),
            str(row["lost"]),
            str(row["made_twice"]),
            str(row["begun_again"]),
            "" if row["idle"] is None else f"{row['idle']:.0%}",
            "" if row["idle_fixed"] is None else f"{row['idle_fixed']:.0%}",
        ]
        for row in rows
    ]
    cost = [
        [
            row["name"],
            f"{row['operations']:.0f}",
            f"{row['mean_a_second']:.0f}",
            str(row["peak"]),
            str(row["largest_folder"]),
            f"{row['claim_ms']:.2f}",
            f"{row['claim_ms_p99']:.0f}",
        ]
        for row in rows
    ]
    headings = ["", "deaths", "lost", "made twice", "begun again", "idle", "idle, fixed parts"]
    files = ["", "a sample", "mean a second", "most in a second", "largest folder"]
    return "\n\n".join(
        [
            render_table(headings, course),
            "File operations, entries of the largest folder, and real milliseconds of a claim "
            "(median and 99th percentile):",
            render_table([*files, "claim", "slow claim"], cost),
            format_caption(record),
        ]
    )
