"""The commands `erta bench pipeline` and `erta bench attach-overhead`.

diffusers is imported when they run.
"""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_bench.setting import SUBSTEPS, Setting, open_model, spell_device
from erta_framework.cli import Device
from erta_framework.console import make_console
from erta_framework.optional_dependencies import require_extra


def pipeline_command(
    prompts: options.HeldOut = "16",
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25, 17 and 12."),
    ] = None,
    scheduler: Annotated[
        list[str] | None, typer.Option(help="flow_euler or unipc; repeatable. Default both.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the full run.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a request.")] = 16,
    substeps: options.Substeps = SUBSTEPS,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """The ablation on shapes-wan through diffusers' unmodified WanPipeline, beside the own loop.

    PSNR compares with the exact solution, and with the full run of the same scheduler, from the
    same noise. Under the Euler
    scheduler the own loop runs every row too, on the same grid, and the table says whether both
    gave the same bits. A policy that a scheduler cannot serve is refused, and its row says why.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="demo", wanted_by="erta bench pipeline")
    from erta_bench.ablation.pipeline import NAMES, run_pipeline_ablation

    opened = open_model("shapes-wan")
    budgets, names = calls or [25, 17, 12], scheduler or list(NAMES)
    spelled = [f"--calls {budget}" for budget in budgets]
    spelled += [f"--scheduler {name}" for name in names]
    bench = run_pipeline_ablation(
        Setting(
            model=opened.model,
            calibration=opened.calibration,
            held_out=options.choose_held_out(opened, prompts),
            steps=steps,
            batch_size=batch_size,
            accelerator=device,
            substeps=substeps,
        ),
        calls=budgets,
        schedulers=names,
        seed=seed,
        console=make_console(stderr=True),
        command=f"erta bench pipeline --prompts {shlex.quote(prompts)} {' '.join(spelled)} "
        f"--steps {steps} --substeps {substeps} --seed {seed}" + spell_device(device),
    )
    bench.show(path=json)


def attach_overhead_command(
    pipeline: Annotated[
        list[str] | None,
        typer.Option(help="wan-euler or lumina2; repeatable. Default both."),
    ] = None,
    steps: Annotated[int, typer.Option(min=4, help="Steps a request.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Requests of each; the median counts.")] = 40,
    json: options.Json = None,
) -> None:
    """Microseconds a step that an attached engine adds to a pipeline whose network is free."""
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="diffusers", wanted_by="erta bench attach-overhead")
    from erta_bench.overhead.attached import PIPELINES, measure_attached

    chosen = "".join(f"--pipeline {name} " for name in pipeline or ())
    bench = measure_attached(
        pipelines=pipeline or PIPELINES,
        steps=steps,
        repeats=repeats,
        progress=True,
        command=f"erta bench attach-overhead {chosen}--steps {steps} --repeats {repeats}",
    )
    bench.show(path=json)
