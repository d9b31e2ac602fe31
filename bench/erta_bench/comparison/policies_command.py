"""The command `erta bench policies`; diffusers is imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from erta_bench.comparison import setting as options


def policies_command(
    model: options.Model = "shapes-wan",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts to measure.")] = 8,
    seeds: options.Seeds = 3,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25 and 17."),
    ] = None,
    row: options.Rows = None,
    scheduler: options.Scheduler = "",
    steps: options.Steps = 50,
    calibration: options.Calibration = 8,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    json: options.Json = None,
    report: options.Report = None,
) -> None:
    """All installed policies, combinations and other caches on a model, at equal network calls.

    The model runs in its own unmodified pipeline: shapes-wan in WanPipeline, shapes-flux in
    FluxPipeline, both with Euler steps, and shapes-unet in StableDiffusionPipeline, with DDIM.

    Thresholds and intervals are solved for the number of calls, and every row says which it has
    and how many calls it really made. Baselines are fewer steps of several solvers, the caches of
    diffusers, and cache-dit where it is installed. PSNR and SSIM compare with the full run.
    Seconds depend on what else the machine does: only their ratios within one run say something.
    """
    options.needed("policies", report)
    from erta_bench.comparison.bench import policies_bench
    from erta_bench.comparison.page import write_page

    budgets = calls or [25, 17]
    bench = policies_bench(
        options.opened(model, prompts, calibration, steps, batch_size),
        calls=budgets,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        rows=row or (),
        console=Console(stderr=True),
        command=options.spelled(
            "policies",
            model,
            calls=budgets,
            rows=row,
            scheduler=scheduler,
            prompts=prompts,
            seeds=seeds,
            steps=steps,
            calibration=calibration,
            batch_size=batch_size,
            seed=seed,
        ),
    )
    bench.show(path=json)
    if report is not None:
        typer.echo(f"wrote {write_page(bench.record(), report)}")
