"""`erta inspect`: the places inside a network, and what they cost."""

from __future__ import annotations

import json as to_json
from collections.abc import Sequence
from typing import Any

import typer
from rich.table import Table

from erta_framework.cli._models import load_model
from erta_framework.cli._options import (
    ConfigOptions,
    Json,
    PipelineOptions,
    Prompts,
    RequestOptions,
)
from erta_framework.cli._pipeline import load_pipeline, read_prompts, to_arguments, wants_pipeline
from erta_framework.cli._settings import choose_prompts
from erta_framework.config import RunConfig
from erta_framework.console import make_console
from erta_framework.errors import InputError

SCALE = 1024
OUTSIDE = "outside"
"""Shown instead of the depth of places that are not in the trunk."""


def inspect(
    config_options: ConfigOptions,
    pipeline_options: PipelineOptions,
    request: RequestOptions,
    prompt: Prompts = None,
    json: Json = False,
) -> None:
    """Show the places inside a network: blocks, attention, MLPs, stages and cuts, with their costs.

    Runs one request of the first prompt, of one step unless --steps says more, and measures the
    first call of each network in it.
    """
    settings, config = config_options.settings, config_options.read()
    given = read_prompts(request.prompts, prompt)
    text = choose_prompts(config, given, fallback=("",))[0]
    if wants_pipeline(pipeline_options, config, settings):
        arguments = to_arguments(pipeline_options, request.steps, config)
        found = load_pipeline(pipeline_options, config).inspect_places(text, **arguments)
    else:
        found = inspect_model(config, text)
    if json:
        typer.echo(to_json.dumps([group.as_record() for group in found], indent=2))
        return
    make_console().print(make_table(found))


def inspect_model(config: RunConfig, prompt: str) -> Sequence[Any]:
    """The places of a bundled model.

    Raises:
        InputError: It does not offer them.
    """
    offer = getattr(load_model(config.model), "inspect_places", None)
    if offer is None:
        raise InputError(
            f"the model {config.model!r} does not say which places it has; it would need a method "
            "inspect_places(prompt). For a pipeline give --pipeline FOLDER"
        )
    found: Sequence[Any] = offer(prompt)
    return found


def make_table(groups: Sequence[Any]) -> Table:
    """One row for places whose names differ in numbers alone."""
    table = Table(
        caption="FLOPs: share of one network call; places inside each other overlap. Kept: one "
        "output of each, for one network call."
    )
    for name in ("network", "kind", "places"):
        table.add_column(name, no_wrap=True)
    for name in ("count", "depth", "FLOPs", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        first, last = group.depth
        depth = OUTSIDE if last < 0 else str(first) if first == last else f"{first}-{last}"
        table.add_row(
            group.network,
            group.kind,
            group.name,
            str(group.count),
            depth,
            f"{group.share:.1%}",
            show_bytes(group.kept_bytes),
        )
    return table


def show_bytes(size: float) -> str:
    """A size to read, such as `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < SCALE:
            return f"{size:.4g} {unit}"
        size /= SCALE
    return f"{size:.4g} GiB"
