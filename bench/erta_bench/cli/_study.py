"""The command `erta bench study`."""

from __future__ import annotations

from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_bench.setting import SUBSTEPS
from erta_framework.cli import Device
from erta_framework.console import make_console
from erta_framework.errors import InputError, suggest


def study_command(
    name: Annotated[str, typer.Argument(help="Which study, such as plans.")],
    model: Annotated[
        str,
        typer.Option(help="Name of a bundled model, or mixture: an analytic flow."),
    ] = "shapes-wan",
    samples: Annotated[int, typer.Option(min=1, help="Held-out samples.")] = 8,
    calibration: Annotated[int, typer.Option(min=1, help="Samples to calibrate on.")] = 8,
    steps: options.Steps = 50,
    substeps: options.Substeps = SUBSTEPS,
    seed: options.Seed = 0,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """One question asked of a small trained model, such as which plan is best at equal work.

    `plans`: plans of full steps with long gaps first, last or spread evenly, with and without
    refreshed tokens. `noise-scale`: a factor on the noise of cached runs. `noise-length`: how long
    cached noise is against that without reuse. `module-tables`: tables of attention and MLPs at
    equal work. `surrogates`: what stands in for a block, at the same decisions. `gates`:
    tests of a block's input. `corrections`: modules that are corrected, verified or chosen, at
    equal work. `worst-samples`: why the worst samples are the worst, against the exact solution.

    `clusca`, `deepcache`, `fastercache`, `freqca`, `h2cache`, `pab`, `precisecache`,
    `smoothcache`, `spectrum` and `taylorseer`: settings of one method, for 50 steps, beside even
    steps with and without a line.

    PSNR compares with the exact solution and with the full run from the same noise. Held-out
    prompts, and prompts and noise of calibration, are apart.
    """
    from erta_bench.studies import STUDIES, run_study

    if name not in STUDIES:
        raise InputError(f"there is no study {name!r}; {suggest(name, STUDIES)}")
    run_study(
        name,
        STUDIES[name],
        model=model,
        samples=samples,
        calibration=calibration,
        steps=steps,
        seed=seed,
        accelerator=device,
        substeps=substeps,
        console=make_console(stderr=True),
    ).show(path=json)
