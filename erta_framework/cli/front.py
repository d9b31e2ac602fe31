"""What `erta plan` does with a whole front: show it, draw it, and measure it by replays."""

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
    Planner,
    ReplaySetting,
    cost_of,
    front_of,
    measure,
    own_loop,
    unit_of,
)
from erta_framework.calibration import Profile
from erta_framework.cli.common import (
    console,
    demo_prompts,
    load_model,
    prompts_of,
    run_at_seam,
    sampler_of,
)
from erta_framework.cli.pipeline import PipelineOptions, PipelineReplayer
from erta_framework.config import RunConfig
from erta_framework.errors import InputError
from erta_framework.plugins import Policy, flatten
from erta_framework.report import write_front_plot

CALLS = (0.5, 0.34, 0.24)
"""What is measured unless numbers of calls are asked for, as parts of the steps."""


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """What `erta plan` was asked to do with a front.

    Attributes:
        calls: Numbers of network calls to measure.
        measure: Whether to replay plans.
        refine: Trials of moved steps for each.
        prompts: Calibration prompts to replay.
        output: Where the profile goes; by default where it was.
        plot: Picture to draw.
        as_json: Whether to print JSON.
        bundled: Model whose bundled profile this is, which is of the model's own pipeline.
        pipeline: A pipeline to replay in.
    """

    calls: Sequence[int]
    measure: bool
    refine: int
    prompts: int
    output: Path | None
    plot: Path | None
    as_json: bool
    bundled: str | None = None
    pipeline: PipelineOptions | None = None


def show_front(
    config: RunConfig, policies: Sequence[Policy], num_steps: int, options: FrontOptions
) -> None:
    """Print the front of these policies, measured first if that was asked for.

    Raises:
        PolicyError: None of the policies takes a budget.
        InputError: There is nothing to write what was measured to.
    """
    profile = profile_of(policies)
    if options.measure:
        profile = measured(config, policies, num_steps, options)
    planner = next((part for part in flatten(policies) if isinstance(part, Planner)), None)
    held = None
    if profile is not None and planner is not None:
        held = MeasuredFront.of(profile, unit_of(planner))
    rows = front_of(policies, num_steps, held)
    if options.plot is not None:
        names = ", ".join(part.name for part in flatten(policies))
        write_front_plot(f"front of {names}", rows, options.plot)
    if options.as_json:
        typer.echo(json.dumps([row.record() for row in rows], indent=2))
        return
    out = console()
    out.print(front_table(rows, held))
    if options.plot is not None:
        out.print(f"drawn in {options.plot}", markup=False, soft_wrap=True)


def profile_of(policies: Sequence[Policy]) -> Profile | None:
    """The profile of the first policy that has one."""
    path = path_of(policies)
    return None if path is None else Profile.load(path)


def path_of(policies: Sequence[Policy]) -> Path | None:
    """The profile file of the first policy that has one."""
    for policy in policies:
        named = getattr(policy, "profile", None)
        if isinstance(named, str | Path):
            return Path(named)
    return None


def measured(
    config: RunConfig, policies: Sequence[Policy], num_steps: int, options: FrontOptions
) -> Profile:
    """Replay plans on calibration prompts, and write what they gave into the profile."""
    source = path_of(policies)
    if source is None:
        raise InputError(
            "what --measure finds is kept in a profile, and none of these policies has the file of "
            "one; give --profile FILE, or a policy with profile: FILE"
        )
    if options.bundled is not None and options.output is None:
        raise InputError(
            f"--profile {options.bundled} is a file of the installed package; give --output FILE "
            "for the profile with what is measured"
        )
    profile = Profile.load(source)
    setting = setting_of(config, num_steps, options)
    calls = sorted({*(options.calls or [max(2, round(part * num_steps)) for part in CALLS])})
    out = typer.get_text_stream("stderr")
    batches = -(-len(setting.prompts) // setting.batch)
    most = cost_of(calls, num_steps, options.refine) * batches
    print(f"at most {most} network calls a branch", file=out)
    found = measure(
        setting,
        policies,
        num_steps,
        calls,
        options.refine,
        progress=lambda text: print(text, file=out),
    )
    made = found.added_to(profile)
    made.save(options.output if options.output is not None else source)
    return made


def setting_of(config: RunConfig, num_steps: int, options: FrontOptions) -> ReplaySetting:
    """What replays share: a pipeline, the model of a bundled profile, or that of the config.

    Raises:
        InputError: There are no prompts.
    """
    if options.pipeline is not None:
        run = options.pipeline.open(config)
        arguments = {**options.pipeline.arguments(config), "steps": num_steps}
        return ReplaySetting(
            sampler=lambda policies: PipelineReplayer(run, policies, arguments),
            model=None,
            prompts=prompts_of(config, None, fallback=())[: options.prompts],
            seed=arguments["seed"],
            batch=1,
            device=config.accelerator,
        )
    model: Any = load_model(options.bundled or config.model)
    offered = demo_prompts(model)
    prompts = prompts_of(config, None, fallback=offered[0] if offered is not None else ())
    if options.bundled is None:
        sampler: MakeSampler = own_loop(sampler_of(config, ()))
        if config.seam != "latent":
            sampler = lambda policies: run_at_seam(config, model, policies, ())  # noqa: E731
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
        prompts=prompts[: options.prompts],
        seed=config.seed,
        batch=config.batch_size,
        device=config.accelerator,
    )


def front_table(rows: Sequence[FrontRow], held: MeasuredFront | None) -> Table:
    """One row a plan, with columns for what was measured."""
    caption = "speed-up is steps over network calls"
    if held is not None:
        caption += f"; PSNR on calibration samples with {held.policies}"
        if held.timed:
            caption += f"; seconds of a request of {held.batch} on {held.device}"
    table = Table(caption=caption)
    cells = {
        "calls": [str(row.calls) for row in rows],
        "speed-up": [f"{row.num_steps / row.calls:.2f}x" for row in rows],
        "predicted": [f"{row.predicted:.4g}" for row in rows],
        "PSNR": [said("{:.1f} ± {:.1f}", row.psnr, row.psnr_std) for row in rows],
        "refined": [said("{:.1f}", row.refined_psnr) for row in rows],
        "seconds": [said("{:.3g}", row.seconds) for row in rows],
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


def said(form: str, *values: float | None) -> str:
    """Numbers in this form, nothing where one was not measured."""
    return "" if None in values else form.format(*values)
