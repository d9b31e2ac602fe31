"""`erta plan`: what a profile and a budget will do, without running anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erta_framework.cli.app import app
from erta_framework.cli.common import Settings, console, read_settings
from erta_framework.config import build_policies
from erta_framework.errors import InputError
from erta_framework.export import exportable, write_export
from erta_framework.planning import Forecast, forecast
from erta_framework.policy import Policy
from erta_framework.profile import Profile


@app.command()
def plan(
    settings: Settings = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Plan from this profile instead of a configuration's policies."),
    ] = None,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="With --profile: network calls a branch; repeat it to compare budgets."),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="With --profile: error threshold; may be repeated.")
    ] = None,
    policy: Annotated[str, typer.Option(help="With --profile: the policy.")] = "ertacache",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    export: Annotated[
        str | None,
        typer.Option(help="Write the schedule for another cache: cache-dit or magcache."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With --export: the JSON file.")
    ] = None,
) -> None:
    """Show the schedule, calls and predicted speed-up of a profile and a budget."""
    if (export is None) != (output is None):
        raise InputError("--export <cache> and --output <file> go together; give both or neither")
    config = read_settings(settings)
    if profile is None:
        if calls or threshold:
            raise InputError(
                "--calls and --threshold go with --profile; override the configuration with "
                "key=value, such as policies.0.ertacache.calls=17"
            )
        schedule = config.solver.schedule(config.steps, config.sigmas)
        steps, planned = schedule.num_steps, [tuple(config.policies)]
    else:
        steps = int(Profile.load(profile).fingerprint["num_steps"])
        planned = budgets(policy, profile, calls, threshold)
    found = [forecast(policies, steps) for policies in planned]
    if export is not None and output is not None:
        write_one(planned, steps, export, output)
    if as_json:
        typer.echo(json.dumps([record(each) for each in found], indent=2))
        return
    out = console()
    for each in found:
        show_schedule(out, each)
    out.print(table_of(found))


def budgets(
    policy: str, profile: Path, calls: Sequence[int] | None, thresholds: Sequence[float] | None
) -> list[tuple[Policy, ...]]:
    """One list of policies for each budget.

    Raises:
        InputError: There is no budget.
    """
    options: list[dict[str, Any]] = [{"calls": number} for number in calls or ()]
    options += [{"threshold": value} for value in thresholds or ()]
    if not options:
        raise InputError("give a budget beside --profile: --calls N or --threshold LAMBDA")
    return [build_policies([{policy: {"profile": str(profile), **each}}]) for each in options]


def write_one(planned: Sequence[Sequence[Policy]], steps: int, form: str, path: Path) -> None:
    """Write the one schedule that was planned for another cache.

    Raises:
        InputError: There are several, or it cannot be written for that cache.
    """
    if len(planned) != 1:
        raise InputError(f"--export writes one schedule, {len(planned)} were planned; give one")
    written = write_export(exportable(planned[0], steps), form, path)
    typer.echo(f"wrote {written}", err=True)


def show_schedule(out: Console, each: Forecast) -> None:
    """The schedule as a strip of computed and reused steps, ten to a group."""
    out.print(
        f"{each.policy}: {each.calls} of {each.num_steps} steps computed",
        style="bold",
        markup=False,
    )
    strip = Text()
    for index in range(each.num_steps):
        computed = each.sources[index] == index
        strip.append("█" if computed else "░", style="blue" if computed else "yellow")
        if index % 10 == 9:
            strip.append(" ")
    out.print(strip)
    out.print("computed " + " ".join(map(str, each.computed)), style="dim", markup=False)
    out.print()


def table_of(found: Sequence[Forecast]) -> Table:
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
    names = dict.fromkeys(name for each in found for name in each.facts)
    for name in names:
        if name not in ("calls", "threshold"):  # stated above
            values = [each.facts.get(name) for each in found]
            rows[name.replace("_", " ")] = ["-" if v is None else f"{v:.4g}" for v in values]
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def record(each: Forecast) -> dict[str, object]:
    """A forecast as JSON holds it."""
    return {
        "policy": each.policy,
        "steps": each.num_steps,
        "calls": each.calls,
        "speedup": each.speedup,
        "threshold": each.threshold,
        "computed": list(each.computed),
        "sources": list(each.sources),
        "facts": dict(each.facts),
    }
