"""The tables of `erta bench ablation`: each part of the recipe at equal network calls."""

from __future__ import annotations

from collections.abc import Mapping

from tables.data import MissingDataError, Record, Row, find_command
from tables.markdown import format_caption, join_numbers, render_table
from tables.rows import (
    count_samples,
    find_full_run,
    format_quality,
    format_work,
    judge_gaps,
    list_budgets,
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


def render_ladder(record: Record) -> str:
    """PSNR of the ablation: a row a method, a column a number of calls; the best is bold."""
    rows, columns = collect_ladder(record), list_budgets(record)
    best = {n: max(rows, key=lambda name: float(rows[name][n]["psnr_mean"])) for n in columns}
    lines = [
        [
            name,
            *(
                f"**{format_quality(r[n])}**" if best[n] == name else format_quality(r[n])
                for n in columns
            ),
        ]
        for name, r in rows.items()
    ]
    steps = find_full_run(record)["steps"]
    return render_table(["", *(f"{n} of {steps} calls" for n in columns)], lines)


def render_ablation(record: Record) -> str:
    """Every row that was measured: the ablation, its times, and the open choices."""
    full = find_full_run(record)
    parts = [
        f"PSNR in dB against the full run of {full['steps']} steps from the same noise, mean and "
        f"standard deviation over {count_samples(record)}. Network calls are those of each branch; "
        "the speed-up is the ratio of processor seconds, which other load changes least.",
        render_ladder(record),
        format_caption(record),
    ]
    for budget in list_budgets(record):
        rows = [row for row in record["rows"] if row.get("budget") == budget]
        headings = ["", "calls made", "work", "processor s", "speed-up", "PSNR", "SSIM"]
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
        gaps = {n: measure_gap(rows, one, other, n) for n in columns}
        numbers = " / ".join(f"{value:+.1f}" for value in gaps.values())
        lines.append(
            f"* {title}: **{judge_gaps(gaps)}** ({numbers} dB at {join_numbers(columns)} network "
            "calls)."
        )
    return "\n".join([*lines, *describe_choices(record)])


def measure_gap(rows: Mapping[str, Mapping[int, Row]], one: str, other: str, budget: int) -> float:
    """Mean PSNR of one row minus another's.

    Raises:
        MissingDataError: There is no such row.
    """
    for name in (one, other):
        if name not in rows:
            raise MissingDataError(f"ablation.json has no row {name!r}; it has {list(rows)}")
    return float(rows[one][budget]["psnr_mean"]) - float(rows[other][budget]["psnr_mean"])


def describe_choices(record: Record) -> list[str]:
    """The best and the worst of each open choice, beside the offline policy alone."""
    lines = []
    names = {"phi": "Forms of phi and network time", "correction": "Forms of the correction"}
    for group, title in names.items():
        rows = [row for row in record["rows"] if row["group"] == group]
        if not rows:
            raise MissingDataError(f"ablation.json has no rows of group {group!r}")
        budget = rows[0]["budget"]
        alone = collect_ladder(record)["+ offline policy"][budget]["psnr_mean"]
        ranked = sorted(rows, key=lambda row: float(row["psnr_mean"]))
        lines.append(
            f"* {title}, at {budget} calls, where the offline policy alone has {alone:.1f} dB: "
            f"best {ranked[-1]['psnr_mean']:.1f} ({ranked[-1]['name']}), worst "
            f"{ranked[0]['psnr_mean']:.1f} ({ranked[0]['name']})."
        )
    return lines
