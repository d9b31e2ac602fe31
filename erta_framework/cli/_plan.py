"""`erta plan`: what a profile and a budget will do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from erta_framework.budgets import forecast, plan_export, write_export
from erta_framework.calibration import Profile
from erta_framework.cli._front import FrontRequest, show_front
from erta_framework.cli._models import find_profile
from erta_framework.cli._options import (
    TARGETS,
    ConfigOptions,
    FrontOptions,
    Json,
    PipelineOptions,
    ProfileOptions,
    unset,
)
from erta_framework.cli._pipeline import wants_pipeline
from erta_framework.cli._policy_specs import is_complete, read_policies
from erta_framework.cli._schedules import as_record, make_table, show_schedule
from erta_framework.config import RunConfig, build_policies, options_from
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import require_writable
from erta_framework.plugins import Policy, find_default_policy
from erta_framework.text import escape_line


def plan(
    config_options: ConfigOptions,
    planned: ProfileOptions,
    front: FrontOptions,
    pipeline: PipelineOptions,
    as_json: Json = False,
    export: Annotated[
        str | None,
        unset("Write the schedule to --output in a format of `erta schedule formats`."),
    ] = None,
    output: Annotated[
        Path | None,
        unset(
            "File to write. With --export: the JSON file. With --measure or --refine: the profile "
            "with the measurements; by default they are added to the profile that was read.",
            "--output",
            "-o",
        ),
    ] = None,
) -> None:
    """Show the schedule, calls and predicted speed-up of a profile and a budget.

    Without a budget, or with --front, --plot, --measure or --refine, it shows the front: the best
    plan for each number of network calls. Only --measure and --refine sample. With --pipeline they
    sample in that pipeline, on the prompts of the configuration (prompts_file=prompts.txt).
    """
    config = config_options.read()
    piped = wants_pipeline(pipeline, config, config_options.settings)
    refuse_conflicts(planned, front, export, output, piped)
    chosen = FromProfile.read(planned, config)
    no_budget = not (planned.calls or planned.not_calls)
    if chosen is not None and no_budget and not front.wanted and chosen.is_complete:
        show_plans([chosen.build()], chosen.steps, export, output, as_json)
    elif front.wanted or (chosen is not None and no_budget):
        refuse_budgets(planned, export)
        request = FrontRequest(
            options=front,
            calls=planned.calls or (),
            output=output,
            as_json=as_json,
            bundled=None if chosen is None else chosen.bundled,
            pipeline=pipeline if piped else None,
        )
        if chosen is not None:
            show_front(config, chosen.build_whole(), chosen.steps, request)
        else:
            show_front(config, config.policies, count_steps(config), request)
    elif chosen is not None:
        show_plans(chosen.build_planned(planned), chosen.steps, export, output, as_json)
    else:
        show_plans([config.policies], count_steps(config), export, output, as_json)


def refuse_conflicts(
    planned: ProfileOptions,
    front: FrontOptions,
    export: str | None,
    output: Path | None,
    piped: bool,
) -> None:
    """Refuse options that do not go together.

    Raises:
        InputError: Names them.
    """
    if (export is None) != (output is None) and not front.measured:
        raise InputError("--export <cache> and --output <file> go together; give both or neither")
    if front.target not in TARGETS or (front.target != TARGETS[0] and not front.measured):
        raise InputError(
            f"--target {front.target}: it is one of {', '.join(TARGETS)}, and says what --measure "
            "and --refine measure to"
        )
    if piped and not front.measured:
        raise InputError("--pipeline replays plans; give --measure or --refine N with it")
    own = planned.not_calls or planned.option
    alone = planned.profile is None and planned.policy is None
    if alone and (own or (planned.calls and not front.measured)):
        raise InputError(
            "--calls, --speedup, --quality, --threshold, --budget and --option go with --profile "
            "or --policy; override the configuration with key=value, such as "
            "policies.0.NAME.budget.calls=17"
        )


def refuse_budgets(planned: ProfileOptions, export: str | None) -> None:
    """Refuse what has no meaning for the front of all budgets.

    Raises:
        InputError: Names it.
    """
    if export is not None:
        raise InputError(
            "--export writes one schedule, this asks for the front of all budgets; give one "
            "--calls N, and no --front, --plot, --measure or --refine"
        )
    if planned.not_calls:
        raise InputError(
            "a front has all budgets; give --calls to measure some, no --speedup, --quality, "
            "--threshold or --budget"
        )


def show_plans(
    planned: Sequence[Sequence[Policy]],
    steps: int,
    export: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print the schedule of each list of policies, and write the only one for another cache."""
    if output is not None:
        require_writable(output, "schedule")
    found = [forecast(policies, steps) for policies in planned]
    if export is not None and output is not None:
        write_one(planned, steps, export, output)
    if as_json:
        typer.echo(json.dumps([as_record(each) for each in found], indent=2))
        return
    out = make_console()
    for each in found:
        show_schedule(out, each)
    out.print(make_table(found))


def count_steps(config: RunConfig) -> int:
    """Steps of the schedule that a configuration describes."""
    return config.solver.schedule(config.steps, config.sigmas).num_steps


@dataclass(frozen=True, slots=True)
class FromProfile:
    """A policy that plans, as `--profile`, `--policy` and `--option` name it.

    Attributes:
        file: The profile; None where the policy needs none.
        policy: Name of the policy that plans.
        options: Its other settings.
        steps: Steps of the profile, or of the configuration.
        bundled: Model that brings this profile; None for a file of the user's.
    """

    file: Path | None
    policy: str
    options: Mapping[str, Any]
    steps: int
    bundled: str | None

    @classmethod
    def read(cls, options: ProfileOptions, config: RunConfig) -> FromProfile | None:
        """With the profile found and read; None without `--profile` and `--policy`.

        Raises:
            InputError: An option is not `KEY=VALUE`.
            ConfigError: `--policy` is none.
            ProfileError: There is no such profile.
        """
        if options.profile is None and options.policy is None:
            return None
        specs = read_policies(options.policy or find_default_policy())
        if len(specs) != 1:
            raise InputError(f"--policy {options.policy}: one policy plans, got {len(specs)}")
        ((name, given),) = specs[0].items()
        file = None if options.profile is None else find_profile(options.profile)
        return cls(
            file,
            name,
            {**given, **options_from("--option", options.option or ())},
            steps=count_steps(config) if file is None else Profile.load(file).num_steps,
            bundled=None if file == options.profile else str(options.profile),
        )

    @property
    def is_complete(self) -> bool:
        """Whether its options say a schedule already, without a profile or a budget."""
        return self.file is None and is_complete({self.policy: dict(self.options)})

    def build(self) -> tuple[Policy, ...]:
        """The policy with its own options."""
        return self._with({})

    def build_whole(self) -> tuple[Policy, ...]:
        """The policy with a budget of every step."""
        return self._with({"budget": {"calls": self.steps}})

    def build_planned(self, options: ProfileOptions) -> list[tuple[Policy, ...]]:
        """One list of policies for each budget.

        Raises:
            ConfigError: A budget is not `KEY=VALUE`.
            PolicyError: It is none of the five.
        """
        wanted: list[dict[str, Any]] = [{"budget": {"calls": n}} for n in options.calls or ()]
        wanted += [{"budget": options_from("--budget", [each])} for each in options.budget or ()]
        wanted += [{"budget": {"speedup": value}} for value in options.speedup or ()]
        wanted += [{"budget": {"quality": name}} for name in options.quality or ()]
        wanted += [{"threshold": value} for value in options.threshold or ()]
        return [self._with(each) for each in wanted]

    def _with(self, chosen: Mapping[str, Any]) -> tuple[Policy, ...]:
        profile = {} if self.file is None else {"profile": str(self.file)}
        options = {**profile, **self.options, **chosen}
        return build_policies([{self.policy: options}])


def write_one(planned: Sequence[Sequence[Policy]], steps: int, form: str, path: Path) -> None:
    """Write the one schedule that was planned for another cache.

    Raises:
        InputError: There are several, or it cannot be written for that cache.
    """
    if len(planned) != 1:
        raise InputError(f"--export writes one schedule, {len(planned)} were planned; give one")
    written = write_export(plan_export(planned[0], steps), form, path)
    typer.echo(escape_line(f"wrote {written}"), err=True)
