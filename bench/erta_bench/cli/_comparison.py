"""The commands `erta bench policies` and `erta bench peers`; they need diffusers when they run."""

from __future__ import annotations

import json as text
from pathlib import Path
from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_bench.setting import SUBSTEPS
from erta_framework.cli import Device
from erta_framework.console import make_console
from erta_framework.errors import InputError


def policies_command(
    model: options.Model = "shapes-wan",
    prompts: options.HeldOut = "8",
    seeds: options.Seeds = 3,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25 and 17."),
    ] = None,
    row: options.Rows = None,
    policy: options.OwnRows = None,
    scheduler: options.Scheduler = "",
    steps: options.Steps = 50,
    calibration: options.Calibration = 8,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    device: Device = "auto",
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
    options.require_extras("policies", report)
    from erta_bench.comparison import compare_policies
    from erta_bench.comparison.page import write_page

    budgets = calls or [25, 17]
    bench = compare_policies(
        options.open_setting(model, prompts, calibration, steps, batch_size, device),
        calls=budgets,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        rows=[*(row or ()), *(policy or ())],
        console=make_console(stderr=True),
        command=options.format_command(
            "policies",
            model,
            calls=budgets,
            rows=[*(row or ()), *(policy or ())],
            scheduler=scheduler,
            prompts=prompts,
            seeds=seeds,
            steps=steps,
            calibration=calibration,
            batch_size=batch_size,
            seed=seed,
            device=device,
        ),
    )
    bench.show(path=json)
    if report is not None:
        typer.echo(f"wrote {write_page(bench.record(), report)}")


def peers_command(
    model: options.Model = "shapes-wan",
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples to measure.")] = 64,
    seeds: options.Seeds = 3,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25, 17, 12 and 8."),
    ] = None,
    row: options.Rows = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only rows of this kind, beside those of --row; repeatable."),
    ] = None,
    step_level: Annotated[
        bool,
        typer.Option(
            "--step-level",
            help="Leave out what works inside the network, and other projects' caches.",
        ),
    ] = False,
    substeps: options.Substeps = SUBSTEPS,
    policy: options.OwnRows = None,
    scheduler: options.Scheduler = "",
    steps: options.Steps = 50,
    calibration: options.Calibration = 24,
    batch_size: options.BatchSize = 16,
    seed: options.Seed = 0,
    device: Device = "auto",
    json: options.Json = None,
    report: options.Report = None,
    again: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            exists=True,
            dir_okay=False,
            help="Join these records, of other rows, seeds or numbers of calls, instead of "
            "measuring; repeatable.",
        ),
    ] = None,
) -> None:
    """Ours, published methods, recombinations and plain solvers at equal network calls.

    Every row is compared with a nearly exact solution and with the full run from the same noise,
    and by its pixels with the prompt. Kinds are ours, peer, composed, plain, and oracle. Rows of
    kind composed recombine published parts, or step plainly on the sigmas that a planned schedule
    computes at; they count neither as peers nor as ours.

    The JSON file is written after each seed set and where the run is stopped, marked as unfinished.
    """
    options.require_extras("peers", report)
    from erta_bench.comparison import compare_peers, join_records
    from erta_bench.comparison.peers_page import write_peers_page

    if again and json is None and report is None:
        raise InputError("--from joins records into nothing; give --json FILE or --report FOLDER")
    if again:
        record = join_records([text.loads(path.read_text(encoding="utf-8")) for path in again])
        if json is not None:
            json.write_text(text.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            typer.echo(f"wrote {json}")
        if report is not None:
            typer.echo(f"wrote {write_peers_page(record, report)}")
        return
    budgets = calls or [25, 17, 12, 8]
    bench = compare_peers(
        options.open_setting(
            model, str(samples), calibration, steps, batch_size, device, substeps=substeps
        ),
        calls=budgets,
        scheduler=scheduler,
        seeds=seeds,
        seed=seed,
        kinds=kind or (),
        step_level=step_level,
        rows=[*(row or ()), *(policy or ())],
        console=make_console(stderr=True),
        command=options.format_command(
            "peers",
            model,
            calls=budgets,
            rows=[*(row or ()), *(policy or ())],
            scheduler=scheduler,
            kinds=kind,
            step_level=step_level,
            substeps=substeps,
            samples=samples,
            seeds=seeds,
            steps=steps,
            calibration=calibration,
            batch_size=batch_size,
            seed=seed,
            device=device,
        ),
        keep=lambda so_far: None if json is None else so_far.write(json),
    )
    bench.show(path=json)
    if report is not None:
        typer.echo(f"wrote {write_peers_page(bench.record(), report)}")
