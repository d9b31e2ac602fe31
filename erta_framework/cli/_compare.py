"""`erta compare`: policies of one's own beside each other, with pictures and a report."""

from __future__ import annotations

import shlex
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from erta_framework.cli._candidates import list_candidates
from erta_framework.cli._comparing import compare_candidates
from erta_framework.cli._grounds import BundledGround, Ground, PipelineGround
from erta_framework.cli._models import get_demo_prompts, load_model
from erta_framework.cli._options import (
    ConfigOptions,
    PipelineOptions,
    Prompts,
    RequestOptions,
)
from erta_framework.cli._pipeline import load_pipeline, read_prompts, to_arguments, wants_pipeline
from erta_framework.cli._policy_options import PolicyOptions
from erta_framework.cli._settings import choose_prompts
from erta_framework.cli._show_comparison import show_comparison
from erta_framework.config import RunConfig
from erta_framework.console import make_console
from erta_framework.environment import is_shared
from erta_framework.files import require_writable_folder
from erta_framework.optional_dependencies import require_extra
from erta_framework.report import write_report
from erta_framework.sampling import resolve_device

SHOWN = 4
"""Held-out prompts of a bundled model that are sampled by default."""


def compare(
    config_options: ConfigOptions,
    policies: PolicyOptions,
    pipeline_options: PipelineOptions,
    request: RequestOptions,
    prompt: Prompts = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "runs/compare"
    ),
    exact: Annotated[
        bool,
        typer.Option(help="Also measure against the exact solution, which costs six full runs."),
    ] = True,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Compare configurations and policies with the full run and with plain steps; writes a report.

    Give configuration files, policies by --policy, or both. All sample the same prompts from the
    same noise. For each number of network calls that they make, a row of as many plain steps shows
    what the calls buy without a cache. A policy that needs a profile and has none is calibrated
    first, on other prompts.
    """
    for module in ("PIL", "jinja2", "matplotlib", "torchmetrics"):
        require_extra(module, extra="report", wanted_by="erta compare")
    shared = is_shared()
    config, candidates = list_candidates(
        config_options.settings or (), policies, config_options.allow_env, config_options.complete
    )
    require_writable_folder(output)
    piped = [
        wants_pipeline(pipeline_options, each.config, config_options.settings)
        for each in candidates
    ]
    device = resolve_device(config.accelerator, 1)
    given = read_prompts(request.prompts, prompt)
    if any(piped):
        ground, texts = open_pipeline(pipeline_options, request, config, given)
    else:
        candidates = [replace(c, config=request.apply(c.config)) for c in candidates]
        ground, texts = open_model(request.apply(config), given)
    comparison, planned = compare_candidates(
        ground,
        candidates,
        texts,
        output,
        exact=exact,
        clock="processor" if shared and device.type == "cpu" else "wall",
    )
    first, *others = candidates
    report = write_report(
        comparison,
        output,
        title=" against ".join(filter(None, (first.name, ", ".join(o.name for o in others)))),
        setting=ground.describe(),
        forecast=planned,
        device=device,
        command=shlex.join(
            ["erta", "compare", *(config_options.settings or ()), *policies.as_arguments()]
        ),
    )
    show_comparison(make_console(), comparison, report)
    if show:
        webbrowser.open(report.html.resolve().as_uri())


def open_model(config: RunConfig, given: Sequence[str] | None) -> tuple[Ground, list[str]]:
    """A bundled model and the prompts, by default some of its own.

    Raises:
        InputError: There are no prompts.
    """
    model = load_model(config.model)
    offered = get_demo_prompts(model)
    fallback = offered[1][:SHOWN] if offered is not None else ()
    return BundledGround(config, model), choose_prompts(config, given, fallback)


def open_pipeline(
    options: PipelineOptions,
    request: RequestOptions,
    config: RunConfig,
    given: Sequence[str] | None,
) -> tuple[Ground, list[str]]:
    """A loaded pipeline and the prompts.

    Raises:
        InputError: There are no prompts.
    """
    texts = choose_prompts(config, given, fallback=())
    loaded = load_pipeline(options, config)
    arguments = to_arguments(options, request.steps, config)
    seeded = replace(config, seed=arguments["seed"])
    return PipelineGround(seeded, loaded, options, arguments), texts
