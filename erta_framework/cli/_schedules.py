"""Schedules as `erta plan` prints them: a strip of steps, a table of numbers, JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from erta_framework.budgets import StepSchedule, explain_shortfall


def show_schedule(out: Console, each: StepSchedule) -> None:
    """The schedule as a strip of computed and reused steps, ten to a group."""
    out.print(
        f"{each.owner or each.policy}: {each.calls} of {each.num_steps} steps computed",
        style="bold",
    )
    if short := explain_shortfall(each):
        out.print(short)
    strip = Text()
    for index in range(each.num_steps):
        computed = each.sources[index] == index
        strip.append("█" if computed else "░", style="blue" if computed else "yellow")
        if index % 10 == 9:
            strip.append(" ")
    out.print(strip)
    out.print("computed " + " ".join(map(str, each.computed)), style="dim")
    out.print()


def make_table(found: Sequence[StepSchedule]) -> Table:
    """One column a budget, one row a number."""
    table = Table(
        show_header=False,
        caption="speed-up is steps over network calls; wall time follows it where the network "
        "takes most of the time",
    )
    table.add_column(style="bold", no_wrap=True)
    for _ in found:
        table.add_column(justify="right")
    rows = {
        "steps": [str(each.num_steps) for each in found],
        "network calls a branch": [str(each.calls) for each in found],
        "reused steps": [str(each.num_steps - each.calls) for each in found],
        "predicted speed-up": [f"{each.speedup:.2f}x" for each in found],
        "threshold": ["-" if e.threshold is None else f"{e.threshold:.4g}" for e in found],
    }
    facts = [each.describe() for each in found]
    names = dict.fromkeys(name for each in facts for name in each)
    for name in names:
        if name not in ("calls", "threshold"):  # stated above
            values = [each.get(name) for each in facts]
            rows[name.replace("_", " ")] = ["-" if v is None else f"{v:.4g}" for v in values]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def as_record(each: StepSchedule) -> dict[str, object]:
    """A schedule as JSON holds it."""
    return {
        "policy": each.policy,
        "steps": each.num_steps,
        "calls": each.calls,
        "asked": each.asked,
        "speedup": each.speedup,
        "threshold": each.threshold,
        "computed": list(each.computed),
        "sources": list(each.sources),
        "facts": each.describe(),
    }
