"""The command `erta bench fitted`."""

from __future__ import annotations

from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_bench.setting import SUBSTEPS, open_study_model, spell_device
from erta_framework.cli import Device
from erta_framework.console import make_console

PART_HELP = "calls, schedules, choices, samples, robust or solvers; repeatable. Default calls."


def fitted_command(
    part: Annotated[list[str] | None, typer.Option(help=PART_HELP)] = None,
    calls: Annotated[
        list[int] | None,
        typer.Option(help="Network calls of each branch; repeatable. Default 25, 17 and 12."),
    ] = None,
    middle: Annotated[int, typer.Option(min=2, help="Network calls in the other parts.")] = 17,
    measured: Annotated[int, typer.Option(min=1, help="Held-out samples.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Samples of a fit.")] = 16,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the full run.")] = 50,
    substeps: options.Substeps = SUBSTEPS,
    model: Annotated[
        str,
        typer.Option(help="Name of a bundled model, or mixture: an analytic flow, in seconds."),
    ] = "shapes-wan",
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """Fitted multistep reuse beside plain solvers and ERTACache, by part of the study.

    `calls` compares at several numbers of network calls; `schedules` fits on other schedules of as
    many; `choices` changes one setting of the fit at a time; `samples` fits to more or fewer
    samples; `robust` measures a fit on prompts and guidance scales that it has not seen; `solvers`
    fits for other numbers of steps and under a solver with memory.
    """
    from erta_bench.fitted import Study, run_study

    opened = open_study_model(model)
    parts, budgets = part or ["calls"], calls or [25, 17, 12]
    spelled = " ".join([f"--part {one}" for one in parts] + [f"--calls {n}" for n in budgets])
    study = Study(
        model=opened.model,
        calibration=opened.calibration,
        held_out=opened.held_out,
        measured=measured,
        samples=samples,
        steps=steps,
        accelerator=device,
        substeps=substeps,
        console=make_console(stderr=True),
    )
    command = (
        f"erta bench fitted --model {model} {spelled} --middle {middle} --measured {measured} "
        f"--samples {samples} --steps {steps} --substeps {substeps}" + spell_device(device)
    )
    run_study(study, parts, budgets, middle, command).show(path=json)
