"""The command `erta bench policies`; diffusers is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from erta_framework.extras import require_extra


def policies_command(
    model: Annotated[
        str, typer.Option(help="shapes-wan, shapes-flux or shapes-unet.")
    ] = "shapes-wan",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts to measure.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions with other noise.")] = 3,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25 and 17."),
    ] = None,
    row: Annotated[
        list[str] | None,
        typer.Option(help="Only rows of this name, or with this policy; repeatable."),
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Of the model, such as unipc. Default flow_euler, or ddim.")
    ] = "",
    steps: Annotated[int, typer.Option(min=4, help="Steps of the full run.")] = 50,
    calibration: Annotated[int, typer.Option(min=1, help="Prompts to calibrate on.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a request.")] = 16,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="File for the flat records.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html and the Pareto plot.")
    ] = None,
) -> None:
    """All installed policies, combinations and other caches on a model, at equal network calls.

    The model runs in its own unmodified pipeline: shapes-wan in WanPipeline, shapes-flux in
    FluxPipeline, both with Euler steps, and shapes-unet in StableDiffusionPipeline, with DDIM.

    Thresholds and intervals are solved for the number of calls, and every row says which it has
    and how many calls it really made. Baselines are fewer steps of three solvers, the caches of
    diffusers, and cache-dit where it is installed. PSNR and SSIM compare with the full run.
    Seconds depend on what else the machine does: only their ratios within one run say something.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="demo", wanted_by="erta bench policies")
    if report is not None:
        require_extra("matplotlib", extra="report", wanted_by="erta bench policies --report")
    from erta_framework.bench.ablation import Setting
    from erta_framework.bench.cli import demo_prompts
    from erta_framework.registry import models
    from erta_integrations.comparison.bench import policies_bench
    from erta_integrations.comparison.page import write_page

    loaded = models().load(model)()
    few, held_out = demo_prompts(loaded, model, prompts)
    budgets = calls or [25, 17]
    spelled = [f"--calls {budget}" for budget in budgets] + [
        f'--row "{name}"' for name in row or ()
    ]
    spelled += [f"--scheduler {scheduler}"] if scheduler else []
    bench = policies_bench(
        Setting(
            model=loaded,
            calibration=few[:calibration],
            held_out=held_out,
            steps=steps,
            batch_size=batch_size,
        ),
        calls=budgets,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        rows=row or (),
        console=Console(stderr=True),
        command=f"erta bench policies --model {model} --prompts {prompts} --seeds {seeds} "
        f"{' '.join(spelled)} --steps {steps} --calibration {calibration} --seed {seed}",
    )
    bench.show(path=json)
    if report is not None:
        typer.echo(f"wrote {write_page(bench.record(), report)}")
