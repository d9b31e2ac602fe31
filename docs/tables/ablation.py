"""The tables of `erta bench ablation`: each part of the recipe at equal network calls."""

from __future__ import annotations

from collections.abc import Mapping

from erta_bench.comparison import Axis
from tables.data import MissingDataError, Record, Row, find_command
from tables.markdown import format_caption, join_numbers, render_table
from tables.rows import (
    AXES,
    QUALITY_HEADINGS,
    count_samples,
    describe_full_run,
    find_full_run,
    format_both,
    format_gaps,
    format_quality,
    format_work,
    list_budgets,
    read_mean,
)

LADDER = ("plain", "ablation", "recipe")
"""Groups of rows that every number of calls has; the others vary one choice at one number."""
RECIPE = "ertacache (recipe default)"


def collect_ladder(record: Record) -> dict[str, dict[int, Row]]:
    """Rows of the ablation proper, by name and number of calls, in the order of the file.

    Raises:
        MissingDataError: A row lacks one of the numbers of calls.
    """
    found: dict[str, dict[int, Row]] = {}
    for row in record["rows"]:
        if row.get("budget") is not None and row["group"] in LADDER:
            found.setdefault(row["name"], {})[row["budget"]] = row
    for name, rows in found.items():
        if set(rows) != set(list_budgets(record)):
            raise MissingDataError(
                f"ablation.json has {name!r} at {sorted(rows)} calls, not at all of "
                f"{list_budgets(record)}; write it with `{find_command('ablation')}`"
            )
    return found


def render_ladder(record: Record, axis: Axis) -> str:
    """PSNR of the ablation: a row a method, a column a number of calls; the best is bold."""
    rows, columns = collect_ladder(record), list_budgets(record)
    best = {n: max(rows, key=lambda name: read_mean(rows[name][n], axis)) for n in columns}
    lines = []
    for name, found in rows.items():
        cells = {n: format_quality(found[n], axis) for n in columns}
        lines.append([name, *(f"**{c}**" if best[n] == name else c for n, c in cells.items())])
    steps = find_full_run(record)["steps"]
    headings = [f"to {axis.name}", *(f"{n} of {steps} calls" for n in columns)]
    return render_table(headings, lines)


def render_ablation(record: Record) -> str:
    """Every row that was measured: the ablation, its times, and the open choices."""
    full = find_full_run(record)
    parts = [
        f"PSNR in dB against the exact solution and against the full run of {full['steps']} steps, "
        f"from the same noise, mean and standard deviation over {count_samples(record)}. "
        f"{describe_full_run(record)} Network calls are those of each branch; the speed-up is the "
        "ratio of processor seconds, which other load changes least.",
        *(render_ladder(record, axis) for axis in AXES),
        format_caption(record),
    ]
    for budget in list_budgets(record):
        rows = [row for row in record["rows"] if row.get("budget") == budget]
        headings = ["", "calls made", "work", "processor s", "speed-up", *QUALITY_HEADINGS, "SSIM"]
        shown = [full, *(row for row in rows if row["group"] in LADDER)]
        choices = [row for row in rows if row["group"] not in LADDER]
        lines = [format_details(row, full) for row in (*shown, *choices)]
        parts += [f"### {budget} network calls", render_table(headings, lines[: len(shown)])]
        if choices:
            parts += [
                f"The choices that are left open, at {budget} calls; each starts from the offline "
                "policy:",
                render_table(headings, lines[len(shown) :]),
            ]
    return "\n\n".join(parts)


def format_details(row: Row, full: Row) -> list[str]:
    """One row with its calls, work, times and both measures; the full run is the reference."""
    reference = row["psnr_mean"] is None
    return [
        row["name"],
        f"{row['calls']:g}",
        format_work(row, full),
        f"{row['processor_seconds']:.1f}",
        f"{row['processor_speedup']:.2f} x",
        *format_both(row)[:2],
        "reference" if reference else format_quality(row),
        "" if reference else f"{row['ssim_mean']:.3f}",
    ]


def describe_findings(record: Record) -> str:
    """What the numbers say, as sentences whose words follow from the numbers."""
    rows, columns = collect_ladder(record), list_budgets(record)
    asked = [
        ("The offline policy against uniform reuse", "+ offline policy", "uniform"),
        ("Timestep adjustment, added to it", "+ timestep adjustment", "+ offline policy"),
        ("Error rectification, added to it", RECIPE, "+ offline policy"),
        ("The recipe as shipped against as many plain Euler steps", RECIPE, "plain Euler"),
        (
            "The recipe against as many plain second-order steps",
            RECIPE,
            "plain Adams-Bashforth 2",
        ),
    ]
    lines = []
    for title, one, other in asked:
        said = []
        for axis in AXES:
            gaps = {n: measure_gap(rows, one, other, n, axis) for n in columns}
            said.append(f"to {axis.name} {format_gaps(gaps)}")
        lines.append(f"* {title}, at {join_numbers(columns)} network calls: {', '.join(said)}.")
    return "\n".join([*lines, *describe_choices(record)])


def measure_gap(
    rows: Mapping[str, Mapping[int, Row]], one: str, other: str, budget: int, axis: Axis
) -> float:
    """Mean PSNR of one row minus another's.

    Raises:
        MissingDataError: There is no such row.
    """
    for name in (one, other):
        if name not in rows:
            raise MissingDataError(f"ablation.json has no row {name!r}; it has {list(rows)}")
    return read_mean(rows[one][budget], axis) - read_mean(rows[other][budget], axis)


def describe_choices(record: Record) -> list[str]:
    """The best and the worst of each open choice, beside the offline policy alone."""
    lines = []
    names = {"phi": "Forms of phi and network time", "correction": "Forms of the correction"}
    for group, title in names.items():
        rows = [row for row in record["rows"] if row["group"] == group]
        if not rows:
            raise MissingDataError(f"ablation.json has no rows of group {group!r}")
        budget = rows[0]["budget"]
        alone = collect_ladder(record)["+ offline policy"][budget]
        said = []
        for axis in AXES:
            ranked = sorted((read_mean(row, axis), row["name"]) for row in rows)
            (worst, loser), (best, winner) = ranked[0], ranked[-1]
            said.append(
                f"to {axis.name} the offline policy alone has {read_mean(alone, axis):.1f} dB, "
                f"the best {best:.1f} ({winner}), the worst {worst:.1f} ({loser})"
            )
        lines.append(f"* {title}, at {budget} calls: {'; '.join(said)}.")
    return lines
