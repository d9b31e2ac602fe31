"""`erta sample` and `erta calibrate` over several devices: from settings to a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from erta_framework.calibration import Profile
from erta_framework.cli.common import console, load_model, prompts_of, sampler_of
from erta_framework.cli.pipeline import PipelineOptions, write_picture
from erta_framework.config import RunConfig
from erta_framework.errors import InputError
from erta_framework.jobs import (
    CalibrationRequest,
    FabricConfig,
    JobRequest,
    Summary,
    launched,
    load_launcher,
)
from erta_framework.plugins import Policy
from erta_framework.sampling import Sampler, TextModel

PANEL = "For many prompts and devices"

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the job in the output folder, or join it while it runs.",
        rich_help_panel=PANEL,
    ),
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json", help="Print JSON lines instead of a progress bar.", rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What the command line says of a job."""

    prompts: Path | None
    output: Path
    resume: bool
    log_json: bool

    def wanted(self, config: RunConfig) -> bool:
        """Whether this is a job, and not a handful of prompts in one process."""
        lines = self.prompts is not None and self.prompts.suffix == ".jsonl"
        return lines or self.resume or self.log_json or many(config)


def many(config: RunConfig) -> bool:
    """Whether a configuration, or whoever started this process, asks for several processes."""
    return config.devices != 1 or config.fabric.many or launched()


def require_own_loop(config: RunConfig) -> None:
    """Refuse the trunk seam for a bundled model on several devices, which run the own loop.

    Raises:
        InputError: Says so.
    """
    if config.seam != "latent":
        raise InputError(
            f"seam is {config.seam!r}, but a job and several devices run a bundled model in the "
            "own loop, at the latent seam; use one device, or --pipeline FOLDER"
        )


def fabric_of(config: RunConfig) -> FabricConfig:
    """The section `fabric`, completed by the keys of the same names outside of it."""
    default = RunConfig()
    outer = {
        name: getattr(config, name)
        for name in ("accelerator", "devices", "precision")
        if getattr(config, name) != getattr(default, name)
    }
    said = {name: value for name, value in asdict(config.fabric).items() if value is not None}
    return FabricConfig(**{**outer, **said})


def sample_job(
    options: JobOptions,
    pipeline: PipelineOptions,
    config: RunConfig,
    settings: Sequence[str] | None,
    prompt: Sequence[str] | None,
    gifs: bool,
) -> None:
    """What `erta sample` does with a job.

    Raises:
        InputError: Prompts twice, or none.
        Exit: With 1 where a sample failed or is missing.
    """
    if options.prompts is not None and prompt:
        raise InputError("got --prompt and --prompts; give one of them")
    piped = replace(pipeline, prompts=None).wanted(config, settings)
    if not piped:
        require_own_loop(config)
    prompts = options.prompts or prompts_of(config, prompt, fallback=())
    summary = load_launcher().sample(
        JobRequest(
            open=partial(open_pipeline, config, pipeline) if piped else partial(open_model, config),
            prompts=prompts,
            output=options.output,
            seed=pipeline.seed if piped and pipeline.seed is not None else config.seed,
            resume=options.resume,
            log_json=options.log_json,
            fabric=fabric_of(config),
            job=config.job,
            picture=picture(piped) if gifs else None,
        )
    )
    report(summary, options)


def picture(piped: bool) -> Callable[[Any, Path], object]:
    """What draws a sample."""
    if piped:
        return write_picture
    from erta_framework.report import write_gif

    return write_gif


def open_model(config: RunConfig, accelerator: str, precision: str) -> tuple[Sampler, TextModel]:
    """The sampler and model of a configuration, for one process of a job."""
    own = replace(
        config, accelerator=accelerator, precision=precision, devices=1, fabric=FabricConfig()
    )
    return sampler_of(own, own.policies), load_model(own.model)


def open_pipeline(
    config: RunConfig, options: PipelineOptions, accelerator: str, precision: str
) -> tuple[Any, tuple[Policy, ...], dict[str, Any]]:
    """The loaded pipeline, its policies and options, for one process of a job.

    Raises:
        InputError: Fabric's precision is asked for, which a pipeline does not take.
    """
    if precision != "32":
        raise InputError(f"precision {precision} has no effect on a pipeline; use --dtype")
    arguments = options.arguments(config)
    del arguments["seed"]
    return options.open(replace(config, accelerator=accelerator)), config.policies, arguments


def report(summary: Summary, options: JobOptions) -> None:
    """Say how the job stands, on rank 0.

    Raises:
        Exit: With 1 where a sample failed or is missing.
    """
    if not summary.leader:
        return  # a launcher would stop every other rank if this one exited with an error
    if options.log_json:
        typer.echo(json.dumps({"event": "end", **asdict(summary)}))
    else:
        out = console()
        out.print(table_of(summary))
        for index, error in summary.failed:
            out.print(f"sample {index} failed: {error}", style="red", markup=False, soft_wrap=True)
        out.print(f"written to {options.output}", markup=False, soft_wrap=True)
    if not summary.complete:
        raise typer.Exit(1)


def table_of(summary: Summary) -> Table:
    """One line of numbers."""
    table = Table()
    missing = summary.total - summary.done - len(summary.failed)
    cells = {
        "samples": str(summary.total),
        "done": str(summary.done),
        "failed": str(len(summary.failed)),
        "missing": str(missing),
        "network calls a sample": "-",
        "speed-up": "-",
        "seconds": f"{summary.seconds:.2f}",
    }
    if summary.network_calls is not None and summary.speedup is not None:
        cells["network calls a sample"] = f"{summary.network_calls:.1f}"
        cells["speed-up"] = f"{summary.speedup:.2f}x"
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


def calibrate_job(
    config: RunConfig, prompts: Sequence[str], profiler: Policy
) -> tuple[Profile, bool]:
    """What `erta calibrate` does over several devices: the profile, and whether this is rank 0."""
    return load_launcher().calibrate(
        CalibrationRequest(
            open=partial(open_model, config),
            prompts=tuple(prompts),
            profiler=profiler,
            seed=config.seed,
            fabric=fabric_of(config),
        )
    )
