"""`erta sample` and `erta calibrate` over several devices: from settings to a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from erta_framework.calibration import Profile
from erta_framework.cli._models import load_model
from erta_framework.cli._options import JobOptions, PipelineOptions, RequestOptions
from erta_framework.cli._pipeline import (
    load_pipeline,
    to_arguments,
    wants_pipeline,
    write_picture,
)
from erta_framework.cli._samplers import make_sampler, require_own_loop
from erta_framework.cli._settings import choose_prompts
from erta_framework.config import RunConfig
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.jobs import (
    LAUNCHER,
    CalibrationRequest,
    FabricConfig,
    JobRequest,
    Summary,
    is_launched,
    load_launcher,
)
from erta_framework.plugins import Policy
from erta_framework.sampling import Sampler, TextModel
from erta_framework.text import escape_line


def is_job(options: JobOptions, prompts: Path | None, config: RunConfig) -> bool:
    """Whether `erta sample` is asked for a job, not for a few prompts in one process."""
    requests = prompts is not None and prompts.suffix == ".jsonl"
    return requests or options.resume or options.log_json or is_distributed(config)


def is_distributed(config: RunConfig) -> bool:
    """Whether a configuration, or whoever started this process, asks for several processes."""
    elsewhere = config.launcher != LAUNCHER
    return elsewhere or config.devices != 1 or config.fabric.is_distributed or is_launched()


def merge_fabric(config: RunConfig) -> FabricConfig:
    """The section `fabric`, completed by the keys of the same names outside of it."""
    default = RunConfig()
    outer = {
        name: getattr(config, name)
        for name in ("accelerator", "devices", "precision")
        if getattr(config, name) != getattr(default, name)
    }
    section = {name: value for name, value in asdict(config.fabric).items() if value is not None}
    return FabricConfig(**{**outer, **section})


def sample_job(
    options: JobOptions,
    pipeline: PipelineOptions,
    request: RequestOptions,
    config: RunConfig,
    settings: Sequence[str] | None,
    prompt: Sequence[str] | None,
    folder: Path,
    pictures: bool,
) -> None:
    """Sample a job, and print how it stands.

    Raises:
        InputError: Prompts twice, or none.
        Exit: With status 1 where a sample failed or is missing.
    """
    if request.prompts is not None and prompt:
        raise InputError("got --prompt and --prompts; give one of them")
    piped = wants_pipeline(pipeline, config, settings)
    if not piped:
        config = request.apply(config)
        require_own_loop(config)
    prompts = request.prompts or choose_prompts(config, prompt, fallback=())
    open_piped = partial(open_pipeline, config, pipeline, request.steps)
    summary = load_launcher(config.launcher).sample(
        JobRequest(
            open=open_piped if piped else partial(open_model, config),
            prompts=prompts,
            output=folder,
            seed=pipeline.seed if piped and pipeline.seed is not None else config.seed,
            resume=options.resume,
            log_json=options.log_json,
            fabric=merge_fabric(config),
            job=config.job,
            picture=choose_writer(piped) if pictures else None,
        )
    )
    show_summary(summary, folder, options.log_json)


def choose_writer(piped: bool) -> Callable[[Any, Path], object]:
    """The function that writes the picture of a sample."""
    if piped:
        return write_picture
    from erta_framework.report import write_gif

    return write_gif


def open_model(config: RunConfig, accelerator: str, precision: str) -> tuple[Sampler, TextModel]:
    """The sampler and model of a configuration, for one process of a job."""
    own = replace(
        config, accelerator=accelerator, precision=precision, devices=1, fabric=FabricConfig()
    )
    return make_sampler(own, own.policies), load_model(own.model)


def open_pipeline(
    config: RunConfig,
    options: PipelineOptions,
    steps: int | None,
    accelerator: str,
    precision: str,
) -> tuple[Any, tuple[Policy, ...], dict[str, Any]]:
    """The loaded pipeline, its policies and options, for one process of a job.

    Raises:
        InputError: Fabric's precision is set, which a pipeline does not take.
    """
    if precision != "32":
        raise InputError(f"precision {precision} has no effect on a pipeline; use --dtype")
    arguments = to_arguments(options, steps, config)
    del arguments["seed"]
    run = load_pipeline(options, replace(config, accelerator=accelerator))
    return run, config.policies, arguments


def show_summary(summary: Summary, folder: Path, log_json: bool) -> None:
    """Print how the job stands, on rank 0.

    Raises:
        Exit: With status 1 where a sample failed or is missing.
    """
    if not summary.leader:
        return  # a launcher would stop every other rank if this one exited with an error
    if log_json:
        typer.echo(json.dumps({"event": "end", **asdict(summary)}))
    else:
        out = make_console()
        out.print(make_table(summary))
        for index, error in summary.failed:
            out.print(escape_line(f"sample {index} failed: {error}"), style="red", soft_wrap=True)
        out.print(escape_line(f"written to {folder}"), soft_wrap=True)
    if not summary.complete:
        raise typer.Exit(1)


def make_table(summary: Summary) -> Table:
    """The numbers of a job in one row."""
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
    """Calibrate over several devices: the profile, and whether this is rank 0."""
    return load_launcher(config.launcher).calibrate(
        CalibrationRequest(
            open=partial(open_model, config),
            prompts=tuple(prompts),
            profiler=profiler,
            seed=config.seed,
            fabric=merge_fabric(config),
        )
    )
