"""Measure caching methods; each benchmark prints a table and takes `--json FILE`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from erta_bench.ablation import run_ablation
from erta_bench.batch import BatchSetting, compare_modes
from erta_bench.budgets import compare_schedules, vary_lambda
from erta_bench.cli import _options as options
from erta_bench.overhead import measure_overhead, measure_sites
from erta_bench.setting import SUBSTEPS, Setting, open_model, spell_device
from erta_framework.cli import BenchGroup, Device
from erta_framework.console import make_console

app = typer.Typer(
    cls=BenchGroup,
    help="Measure caching methods; each benchmark prints a table and takes --json FILE.",
    no_args_is_help=True,
    add_completion=False,
)
CALLS = [25, 17, 12]
"""Network calls of each branch, unless others are asked for."""
Model = Annotated[str, typer.Option(help="Name of a bundled model.")]
Calls = Annotated[
    list[int] | None,
    typer.Option(help="Network calls of each branch; repeatable. Default 25, 17 and 12."),
]
Steps = Annotated[int, typer.Option(min=2, help="Steps of the full run.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a batch.")]
Seed = Annotated[int, typer.Option(help="First seed.")]


@app.command("ablation")
def ablation_command(
    model: Model = "shapes-wan",
    prompts: options.HeldOut = "32",
    seed_sets: Annotated[int, typer.Option(min=1, help="Repetitions with other noise.")] = 3,
    calls: Calls = None,
    steps: Steps = 50,
    batch_size: BatchSize = 16,
    substeps: options.Substeps = SUBSTEPS,
    seed: Seed = 0,
    device: Device = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="4 prompts, 1 seed set and the first number of calls.")
    ] = False,
    json: options.Json = None,
) -> None:
    """The paper's ablation: uniform, + offline policy, + timestep adjustment, + rectification.

    Beside it the same number of plain steps, and every choice that the paper leaves open, once.
    PSNR compares with the exact solution and with the full run from the same noise, SSIM with the
    full run; gain is over uniform reuse, to the full run.
    """
    budgets = calls or CALLS
    if quick:
        prompts, seed_sets, budgets = "4", 1, budgets[:1]
    opened = open_model(model)
    setting = Setting(
        model=opened.model,
        calibration=opened.calibration[:4] if quick else opened.calibration,
        held_out=options.choose_held_out(opened, prompts),
        steps=steps,
        batch_size=batch_size,
        accelerator=device,
        substeps=substeps,
    )
    spelled = " ".join(f"--calls {budget}" for budget in budgets)
    bench = run_ablation(
        setting,
        calls=budgets,
        seed_sets=seed_sets,
        seed=seed,
        console=make_console(stderr=True),
        command=f"erta bench ablation --model {model} --prompts {shlex.quote(prompts)} "
        f"--seed-sets {seed_sets} {spelled} --steps {steps} --substeps {substeps} --seed {seed}"
        + (" --quick" if quick else "")
        + spell_device(device),
    )
    bench.show(path=json)


def open_planning_setting(
    name: str, prompts: str, steps: int, batch_size: int, device: str, substeps: int
) -> tuple[Setting, str]:
    """A bundled model with one batch of calibration prompts, and how the command names it."""
    opened = open_model(name)
    setting = Setting(
        model=opened.model,
        calibration=opened.calibration[:batch_size],
        held_out=options.choose_held_out(opened, prompts),
        steps=steps,
        batch_size=batch_size,
        accelerator=device,
        substeps=substeps,
    )
    named = (
        f"--model {name} --prompts {shlex.quote(prompts)} --steps {steps} "
        f"--batch-size {batch_size} --substeps {substeps}"
    )
    return setting, named + spell_device(device)


@app.command("budgets")
def budgets_command(
    model: Model = "shapes-wan",
    prompts: options.HeldOut = "32",
    calls: Calls = None,
    trials: Annotated[int, typer.Option(min=0, help="Moved steps that refining may try.")] = 8,
    refine_samples: Annotated[int, typer.Option(min=1, help="Samples that it replays.")] = 8,
    steps: Steps = 50,
    batch_size: BatchSize = 16,
    substeps: options.Substeps = SUBSTEPS,
    seed: Seed = 0,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """Schedules at equal network calls: threshold walk, each planner, refined plans.

    Each with residual reuse, with K and B, and with a first-order forecast over sigma. PSNR
    compares with the exact solution and the full run from the same noise; prompts and noise are not
    those of calibration.
    The JSON file is written after each number of calls, so that a run may be stopped.
    """
    budgets = calls or CALLS
    setting, named = open_planning_setting(model, prompts, steps, batch_size, device, substeps)
    bench = compare_schedules(
        setting,
        calls=budgets,
        trials=trials,
        refine_samples=refine_samples,
        seed=seed,
        console=make_console(stderr=True),
        command=f"erta bench budgets {named} --trials {trials} "
        f"--refine-samples {refine_samples} --seed {seed}",
        keep=lambda so_far: None if json is None else so_far.write(json),
    )
    bench.show(path=json)


@app.command("lambda")
def lambda_command(
    model: Model = "shapes-wan",
    prompts: options.HeldOut = "32",
    calls: Calls = None,
    steps: Steps = 50,
    batch_size: BatchSize = 16,
    substeps: options.Substeps = SUBSTEPS,
    seed: Seed = 0,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """How much ERTACache's lambda matters: as solved for a budget, and a fifth less and more."""
    budgets = calls or CALLS
    setting, named = open_planning_setting(model, prompts, steps, batch_size, device, substeps)
    spelled = " ".join(f"--calls {budget}" for budget in budgets)
    bench = vary_lambda(
        setting,
        calls=budgets,
        seed=seed,
        console=make_console(stderr=True),
        command=f"erta bench lambda {named} {spelled} --seed {seed}",
    )
    bench.show(path=json)


@app.command("overhead")
def overhead_command(
    steps: Annotated[int, typer.Option(min=2, help="Steps a run.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 40,
    json: options.Json = None,
) -> None:
    """Microseconds a step of the engine beside a hand-written loop, with a network that is free.

    The last rows count device synchronisations: none with a static schedule, and, as a control,
    those of a schedule that is decided by values.
    """
    command = f"erta bench overhead --steps {steps} --repeats {repeats}"
    bench = measure_overhead(steps=steps, repeats=repeats, progress=True, command=command)
    bench.show(path=json)


@app.command("sites")
def sites_command(
    places: Annotated[int, typer.Option(min=1, help="Modules that are selected.")] = 228,
    steps: Annotated[int, typer.Option(min=2, help="Steps a run.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 30,
    json: options.Json = None,
) -> None:
    """Microseconds that a gate adds to a visit of a module, beside the same network untouched.

    The modules do nothing. A visit is what happens inside the network call; all told is that with
    asking the policy, setting its plan, keeping and reporting.
    """
    bench = measure_sites(
        places=places,
        steps=steps,
        repeats=repeats,
        progress=True,
        command=f"erta bench sites --places {places} --steps {steps} --repeats {repeats}",
    )
    bench.show(path=json)


@app.command("batch")
def batch_command(
    model: Model = "shapes-wan",
    prompts: options.HeldOut = "16",
    threshold: Annotated[
        list[float] | None,
        typer.Option(help="Threshold of easycache; repeatable. Default 0.02 and 0.05."),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a run.")] = 50,
    substeps: options.Substeps = SUBSTEPS,
    seed: Seed = 0,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """Per-sample decisions in a batch of easy and hard prompts, beside what else one could do.

    The same policy decides for each sample, for the whole batch because a driver cannot split it
    (safe maximum), by means over the batch, and one prompt at a time. Speed compares with the full
    run of the same batch, PSNR with that and with the exact solution. A second batch is chosen to
    be mixed: the easiest and the hardest of a pool, by the network calls that they take.
    """
    thresholds = threshold or [0.02, 0.05]
    opened = open_model(model)
    spelled = " ".join(f"--threshold {value:g}" for value in thresholds)
    bench = compare_modes(
        BatchSetting(model=opened.model, steps=steps, accelerator=device, substeps=substeps),
        options.choose_held_out(opened, prompts),
        thresholds=thresholds,
        seed=seed,
        progress=True,
        command=f"erta bench batch --model {model} --prompts {shlex.quote(prompts)} {spelled} "
        f"--steps {steps} --substeps {substeps} --seed {seed}" + spell_device(device),
    )
    bench.show(path=json)
