"""The command `erta bench attach-overhead`; diffusers is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erta_framework.optional_dependencies import require_extra


def attach_overhead_command(
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="wan-euler or lumina2; repeatable. Default both."),
    ] = None,
    steps: Annotated[int, typer.Option(min=4, help="Steps a request.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Requests of each; the median counts.")] = 40,
    json: Annotated[Path | None, typer.Option("--json", help="File for the flat records.")] = None,
) -> None:
    """Microseconds a step that an attached engine adds to a pipeline whose network is free."""
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="diffusers", wanted_by="erta bench attach-overhead")
    from erta_bench.pipelines.attach_overhead import PIPELINES, attach_overhead

    chosen = "".join(f"--pipeline {name} " for name in pipeline or ())
    bench = attach_overhead(
        pipelines=pipeline or PIPELINES,
        steps=steps,
        repeats=repeats,
        progress=True,
        command=f"erta bench attach-overhead {chosen}--steps {steps} --repeats {repeats}",
    )
    bench.show(path=json)
