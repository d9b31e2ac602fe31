"""`erta plan`: what a profile and a budget will do, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from erta_framework.budgets import StepSchedule, forecast, plan_export, write_export
from erta_framework.calibration import Profile
from erta_framework.cli.app import app
from erta_framework.cli.common import Settings, console, profile_file, read_settings, with_seam
from erta_framework.cli.front import FrontOptions, show_front
from erta_framework.cli.pipeline import (
    Dtype,
    Frames,
    GuidanceScale,
    Height,
    Pipeline,
    PipelineOptions,
    SeamOption,
    Seed,
    Width,
)
from erta_framework.config import RunConfig, build_policies, options_from
from erta_framework.errors import InputError
from erta_framework.plugins import Policy


@app.command()
def plan(
    settings: Settings = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Plan from this profile instead of a configuration's policies; a file, or the "
            "name of a bundled model that brings one."
        ),
    ] = None,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="With --profile: network calls a branch; repeat it to compare budgets."),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="With --profile: error threshold; may be repeated.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(help="With --profile: calls, speedup, psnr or seconds; psnr=30. Repeatable."),
    ] = None,
    policy: Annotated[str, typer.Option(help="With --profile: the policy.")] = "ertacache",
    option: Annotated[
        list[str] | None,
        typer.Option(help="With --profile: a setting of the policy; cost=forecast. Repeatable."),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="The best plan of every number of network calls.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Replay plans on calibration prompts, and keep PSNR and seconds."
        ),
    ] = False,
    refine: Annotated[
        int, typer.Option(min=0, help="Move computed steps while measuring; so many trials each.")
    ] = 0,
    prompts: Annotated[int, typer.Option(min=1, help="Calibration prompts to replay.")] = 16,
    plot: Annotated[Path | None, typer.Option(help="Picture of the front to draw.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    export: Annotated[
        str | None,
        typer.Option(help="Write the schedule for another cache: cache-dit or magcache."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="With --export: the JSON file. With --measure: the profile with what was "
            "measured, by default in place.",
        ),
    ] = None,
    pipeline: Pipeline = None,
    guidance: GuidanceScale = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    seed: Seed = None,
    dtype: Dtype = None,
    seam: SeamOption = None,
) -> None:
    """Show the schedule, calls and predicted speed-up of a profile and a budget.

    Without a budget, or with --front, --plot, --measure or --refine: the front of all budgets.
    Nothing is sampled unless --measure or --refine asks for it; with --pipeline, in that pipeline,
    on the prompts of the configuration (prompts_file=prompts.txt).
    """
    measured = measure or refine > 0
    if (export is None) != (output is None) and not measured:
        raise InputError("--export <cache> and --output <file> go together; give both or neither")
    config = with_seam(read_settings(settings), seam)
    piped = PipelineOptions(pipeline, None, None, guidance, height, width, frames, seed, dtype)
    if piped.wanted(config, settings) and not measured:
        raise InputError("--pipeline replays plans; give --measure or --refine N with it")
    asked = front or measured or plot is not None
    chosen = None if profile is None else FromProfile.of(profile, policy, option or ())
    if chosen is None and (threshold or budget or option or (calls and not measured)):
        raise InputError(
            "--calls, --threshold, --budget and --option go with --profile; override the "
            "configuration with key=value, such as policies.0.ertacache.calls=17"
        )
    if asked or (chosen is not None and not (calls or threshold or budget)):
        if export is not None:
            raise InputError(
                "--export writes one schedule, this asks for the front of all budgets; give one "
                "--calls N, and no --front, --plot, --measure or --refine"
            )
        if threshold or budget:
            raise InputError(
                "a front has all budgets; give --calls to measure some, no --threshold or --budget"
            )
        options = FrontOptions(
            calls or (),
            measured,
            refine,
            prompts,
            output,
            plot,
            as_json,
            None if chosen is None else chosen.bundled,
            piped if pipeline is not None else None,
        )
        if chosen is not None:
            show_front(config, chosen.whole(), chosen.steps, options)
        else:
            show_front(config, config.policies, steps_of(config), options)
        return
    if chosen is None:
        steps, planned = steps_of(config), [tuple(config.policies)]
    else:
        steps, planned = chosen.steps, chosen.planned(calls, threshold, budget)
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


def steps_of(config: RunConfig) -> int:
    """Steps of the schedule that a configuration describes."""
    return config.solver.schedule(config.steps, config.sigmas).num_steps


@dataclass(frozen=True, slots=True)
class FromProfile:
    """What `--profile`, `--policy` and `--option` say.

    Attributes:
        file: The profile.
        policy: Name of the policy that plans.
        options: Its other settings.
        steps: Steps of the profile.
        bundled: Model that brings this profile.
    """

    file: Path
    policy: str
    options: Mapping[str, Any]
    steps: int
    bundled: str | None

    @classmethod
    def of(cls, profile: Path, policy: str, options: Sequence[str]) -> FromProfile:
        """With the profile found and read.

        Raises:
            InputError: An option is not `KEY=VALUE`.
            ProfileError: There is no such profile.
        """
        file = profile_file(profile)
        steps = int(Profile.load(file).fingerprint["num_steps"])
        bundled = None if file == profile else str(profile)
        return cls(file, policy, options_from("--option", options), steps, bundled)

    def whole(self) -> tuple[Policy, ...]:
        """The policy, asked for every step."""
        return self._with({"budget": {"calls": self.steps}})

    def planned(
        self,
        calls: Sequence[int] | None,
        thresholds: Sequence[float] | None,
        budgets: Sequence[str] | None,
    ) -> list[tuple[Policy, ...]]:
        """One list of policies for each budget.

        Raises:
            InputError: A budget is not `KEY=VALUE`.
            PolicyError: It is none of the four.
        """
        wanted: list[dict[str, Any]] = [{"budget": {"calls": number}} for number in calls or ()]
        wanted += [{"budget": options_from("--budget", [each])} for each in budgets or ()]
        wanted += [{"threshold": value} for value in thresholds or ()]
        return [self._with(each) for each in wanted]

    def _with(self, chosen: Mapping[str, Any]) -> tuple[Policy, ...]:
        options = {"profile": str(self.file), **self.options, **chosen}
        return build_policies([{self.policy: options}])


def write_one(planned: Sequence[Sequence[Policy]], steps: int, form: str, path: Path) -> None:
    """Write the one schedule that was planned for another cache.

    Raises:
        InputError: There are several, or it cannot be written for that cache.
    """
    if len(planned) != 1:
        raise InputError(f"--export writes one schedule, {len(planned)} were planned; give one")
    written = write_export(plan_export(planned[0], steps), form, path)
    typer.echo(f"wrote {written}", err=True)


def show_schedule(out: Console, each: StepSchedule) -> None:
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


def table_of(found: Sequence[StepSchedule]) -> Table:
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


def record(each: StepSchedule) -> dict[str, object]:
    """A schedule as JSON holds it."""
    return {
        "policy": each.policy,
        "steps": each.num_steps,
        "calls": each.calls,
        "speedup": each.speedup,
        "threshold": each.threshold,
        "computed": list(each.computed),
        "sources": list(each.sources),
        "facts": each.describe(),
    }
