"""Options that several commands share, and what they are made into."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from erta_bench.setting import (
    SUBSTEPS,
    DemoModel,
    Setting,
    choose_guidance,
    open_model,
    repeat_prompts,
    spell_device,
)
from erta_framework.cli import read_lines
from erta_framework.errors import InputError
from erta_framework.files import require_writable, require_writable_folder
from erta_framework.optional_dependencies import require_extra

Model = Annotated[str, typer.Option(help="shapes-wan, shapes-flux, shapes-unet, galaxy-hsc32, ...")]
HeldOut = Annotated[
    str,
    typer.Option(help="Held-out prompts to measure: how many, or a file with one a line."),
]
Scheduler = Annotated[str, typer.Option(help="A scheduler of the model; its default if empty.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions with other noise.")]
Seed = Annotated[int, typer.Option(help="First seed.")]
Steps = Annotated[int, typer.Option(min=4, help="Steps of the full run.")]
Calibration = Annotated[int, typer.Option(min=1, help="Prompts to calibrate on.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a request.")]
Substeps = Annotated[
    int, typer.Option(min=2, help="Steps of the exact solution for each step; even.")
]


def try_file(path: Path | None) -> Path | None:
    """The file of `--json`, if it can be written.

    Raises:
        InputError: It cannot.
    """
    if path is not None:
        require_writable(path, "records")
    return path


def try_folder(path: Path | None) -> Path | None:
    """The folder of `--report`, if it can be written to.

    Raises:
        InputError: It cannot.
    """
    if path is not None:
        require_writable_folder(path, "report")
    return path


Json = Annotated[
    Path | None, typer.Option("--json", help="File for the flat records.", callback=try_file)
]
Report = Annotated[
    Path | None, typer.Option(help="Folder for report.html and the plot.", callback=try_folder)
]
Rows = Annotated[
    list[str] | None,
    typer.Option("--row", help="Only rows of this name, or with this policy; repeatable."),
]
OwnRows = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help='A row of any installed policy: "{mine: {period: 3}}". An option may say CALLS, or '
        "SOLVE low..high for a value that meets the number of calls; repeatable. Alone it stands "
        "beside the plain rows.",
    ),
]


def require_extras(command: str, report: Path | None) -> None:
    """Refuse to start a comparison without the packages that it needs.

    Raises:
        MissingExtraError: It is not installed.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="demo", wanted_by=f"erta bench {command}")
    if report is not None:
        require_extra("matplotlib", extra="report", wanted_by=f"erta bench {command} --report")


def choose_held_out(opened: DemoModel, asked: str, *, repeat: bool = False) -> list[str]:
    """The prompts that a `--prompts` asks for.

    Args:
        opened: Brings held-out prompts.
        asked: How many of them, or a file with one a line.
        repeat: Whether they may repeat, where each time has other noise.

    Raises:
        InputError: There is no such file, or there are not so many.
    """
    if not asked.isdigit():
        return read_lines(asked)
    if asked == "0":
        raise InputError("--prompts 0: give 1 or more, or a file with one prompt a line")
    return (
        repeat_prompts(opened.held_out, int(asked)) if repeat else opened.take_held_out(int(asked))
    )


def open_setting(
    name: str,
    prompts: str,
    calibration: int,
    steps: int,
    batch_size: int,
    device: str,
    *,
    substeps: int = SUBSTEPS,
) -> Setting:
    """A bundled model with its prompts; held-out prompts repeat, from other noise, as asked for.

    Raises:
        InputError: The model has no prompts of its own, or too few to calibrate on.
    """
    opened = open_model(name)
    return Setting(
        model=opened.model,
        calibration=opened.take_calibration(calibration),
        held_out=choose_held_out(opened, prompts, repeat=True),
        steps=steps,
        guidance=choose_guidance(opened.model),
        batch_size=batch_size,
        accelerator=device,
        substeps=substeps,
    )


def format_command(
    command: str,
    model: str,
    *,
    calls: list[int],
    rows: list[str] | None,
    scheduler: str,
    kinds: list[str] | None = None,
    step_level: bool = False,
    device: str = "auto",
    **options: int | str,
) -> str:
    """The command line that makes the same table again."""
    parts = [f"erta bench {command} --model {model}"]
    parts += [f"--calls {number}" for number in calls]
    parts += [f'--row "{name}"' for name in rows or ()]
    parts += [f"--kind {kind}" for kind in kinds or ()]
    parts += ["--step-level"] if step_level else []
    parts += [f"--scheduler {scheduler}"] if scheduler else []
    parts += [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items()
    ]
    return " ".join(parts) + spell_device(device)
