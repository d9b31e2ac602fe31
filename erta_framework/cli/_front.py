"""The front of all budgets in `erta plan`: shown, drawn, and measured by replays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from erta_framework.budgets import (
    FrontRow,
    MakeSampler,
    MeasuredFront,
    ReplaySetting,
    count_replay_calls,
    measure,
    own_loop,
    plan_front,
)
from erta_framework.calibration import Profile, refuse_reference
from erta_framework.cli._models import find_profile_path, get_demo_prompts, load_model
from erta_framework.cli._options import FrontOptions, PipelineOptions
from erta_framework.cli._pipeline import PipelineReplayer, load_pipeline, to_arguments
from erta_framework.cli._samplers import make_sampler, make_sampler_at_seam
from erta_framework.cli._settings import choose_counted
from erta_framework.config import RunConfig
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import require_writable
from erta_framework.plugins import Policy, flatten
from erta_framework.report import write_front_plot
from erta_framework.text import escape_line

CALLS = (0.5, 0.34, 0.24)
"""The numbers of calls that are measured by default, as parts of the steps."""
SUBSTEPS = 8
"""Steps of the exact solution for each step; with the rougher one beside it, 12 full runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontRequest:
    """A front to show, and to measure first if that is asked for.

    Attributes:
        options: The options of the front.
        calls: Numbers of network calls to measure; by default some parts of the steps.
        output: File for the measured profile; by default the profile itself.
        as_json: Whether to print JSON.
        bundled: Model whose bundled profile this is; its own pipeline replays.
        pipeline: A pipeline to replay in.
    """

    options: FrontOptions
    calls: Sequence[int]
    output: Path | None
    as_json: bool
    bundled: str | None
    pipeline: PipelineOptions | None


def show_front(
    config: RunConfig, policies: Sequence[Policy], num_steps: int, request: FrontRequest
) -> None:
    """Print the front of these policies, measured first if that was asked for.

    Raises:
        PolicyError: None of the policies takes a budget.
        InputError: There is nothing to write what was measured to.
    """
    profile = load_profile(policies)
    if request.options.plot is not None:
        require_writable(request.options.plot, "plot")
    if request.options.measured:
        profile = measure_front(config, policies, num_steps, request)
    rows = plan_front(policies, num_steps)
    held = None if profile is None else MeasuredFront.of(profile, rows[0].schedule.unit)
    rows = [FrontRow.of(row.schedule, held) for row in rows]
    if request.options.plot is not None:
        names = ", ".join(part.name for part in flatten(policies))
        write_front_plot(f"front of {names}", rows, request.options.plot)
    if request.as_json:
        typer.echo(json.dumps([row.record() for row in rows], indent=2))
        return
    out = make_console()
    out.print(make_front_table(rows, held))
    if request.options.plot is not None:
        out.print(escape_line(f"drawn in {request.options.plot}"), soft_wrap=True)


def load_profile(policies: Sequence[Policy]) -> Profile | None:
    """The profile of the first policy that has one."""
    path = find_profile_path(policies)
    return None if path is None else Profile.load(path)


def measure_front(
    config: RunConfig, policies: Sequence[Policy], num_steps: int, request: FrontRequest
) -> Profile:
    """Replay plans on calibration prompts, and write what they gave into the profile."""
    source = find_profile_path(policies)
    if source is None:
        raise InputError(
            "what --measure finds is kept in a profile, and none of these policies reads one from "
            "a file; give --profile FILE, or a policy with profile: FILE"
        )
    if request.bundled is not None and request.output is None:
        raise InputError(
            f"--profile {request.bundled} is a file of the installed package; give --output FILE "
            "for the profile with what is measured"
        )
    target = request.output or source
    refuse_reference(target)
    profile = Profile.load(source)
    require_writable(target, "measured profile")
    setting = make_setting(config, num_steps, request)
    calls = sorted({*(request.calls or [max(2, round(part * num_steps)) for part in CALLS])})
    out = typer.get_text_stream("stderr")
    batches = -(-len(setting.prompts) // setting.batch)
    most = count_replay_calls(calls, num_steps, request.options.refine) * batches
    print(f"at most {most} network calls a branch", file=out)
    exact = request.options.target == "exact"
    if exact:
        print("and 12 full runs for the exact solution", file=out)
    found = measure(
        setting,
        policies,
        num_steps,
        calls,
        request.options.refine,
        progress=lambda text: print(text, file=out),
        substeps=SUBSTEPS if exact else 0,
    )
    made = found.added_to(profile)
    made.save(target)
    return made


def make_setting(config: RunConfig, num_steps: int, request: FrontRequest) -> ReplaySetting:
    """What replays share: a pipeline, the model of a bundled profile, or that of the config.

    Raises:
        InputError: There are no prompts.
    """
    if request.pipeline is not None:
        run = load_pipeline(request.pipeline, config)
        arguments = to_arguments(request.pipeline, num_steps, config)
        return ReplaySetting(
            sampler=lambda policies: PipelineReplayer(run, policies, arguments),
            model=None,
            prompts=choose_counted(config, request.options.prompts, fallback=()),
            seed=arguments["seed"],
            batch=1,
            device=config.accelerator,
        )
    model: Any = load_model(request.bundled or config.model)
    offered = get_demo_prompts(model)
    fallback = offered[0] if offered is not None else ()
    prompts = choose_counted(config, request.options.prompts, fallback)
    if request.bundled is None:
        sampler: MakeSampler = own_loop(make_sampler(config, ()))
        if config.seam != "latent":
            sampler = lambda policies: make_sampler_at_seam(config, model, policies, ())  # noqa: E731
    else:
        sampler = lambda policies: model.pipeline_sampler(  # noqa: E731
            policies,
            num_steps=num_steps,
            batch_size=config.batch_size,
            accelerator=config.accelerator,
        )
    return ReplaySetting(
        sampler=sampler,
        model=model,
        prompts=prompts,
        seed=config.seed,
        batch=config.batch_size,
        device=config.accelerator,
    )


def make_front_table(rows: Sequence[FrontRow], held: MeasuredFront | None) -> Table:
    """One row a plan, with columns for what was measured."""
    caption = "speed-up is steps over network calls"
    if held is not None:
        caption += f"; PSNR to {held.target} on calibration samples with {held.policies}"
        if held.timed:
            caption += f"; seconds of a request of {held.batch} on {held.device}"
    table = Table(caption=caption)
    cells = {
        "calls": [str(row.calls) for row in rows],
        "speed-up": [f"{row.num_steps / row.calls:.2f}x" for row in rows],
        "predicted": [f"{row.predicted:.4g}" for row in rows],
        "PSNR": [format_numbers("{:.1f} ± {:.1f}", row.psnr, row.psnr_std) for row in rows],
        "refined": [format_numbers("{:.1f}", row.refined_psnr) for row in rows],
        "seconds": [format_numbers("{:.3g}", row.seconds) for row in rows],
    }
    shown = {name: column for name, column in cells.items() if any(column)}
    for name, column in shown.items():
        table.add_column(
            name, justify="right", no_wrap=True, min_width=max(map(len, [name, *column]))
        )
    table.add_column("schedule", no_wrap=True)
    for row, *texts in zip(rows, *shown.values(), strict=True):
        strip = Text()
        for index in range(row.num_steps):
            done = index in row.computed
            strip.append("█" if done else "░", style="blue" if done else "yellow")
        table.add_row(*texts, strip)
    return table


def format_numbers(form: str, *values: float | None) -> str:
    """Numbers in this form, nothing where one was not measured."""
    return "" if None in values else form.format(*values)
