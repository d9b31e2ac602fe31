"""What the commands `erta bench policies` and `erta bench peers` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erta_bench.core.ablation import Setting
from erta_bench.core.cli import demo_prompts
from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.plugins import models
from erta_framework.sampling import TextModel

Model = Annotated[str, typer.Option(help="shapes-wan, shapes-flux or shapes-unet.")]
Scheduler = Annotated[str, typer.Option(help="A scheduler of the model; its default if empty.")]
Seeds = Annotated[int, typer.Option(min=1, help="Repetitions with other noise.")]
Seed = Annotated[int, typer.Option(help="First seed.")]
Steps = Annotated[int, typer.Option(min=4, help="Steps of the full run.")]
Calibration = Annotated[int, typer.Option(min=1, help="Prompts to calibrate on.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a request.")]
Json = Annotated[Path | None, typer.Option("--json", help="File for the flat records.")]
Report = Annotated[Path | None, typer.Option(help="Folder for report.html and the plot.")]
Rows = Annotated[
    list[str] | None,
    typer.Option("--row", help="Only rows of this name, or with this policy; repeatable."),
]


def needed(command: str, report: Path | None) -> None:
    """What a comparison cannot do without.

    Raises:
        MissingExtraError: It is not installed.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="demo", wanted_by=f"erta bench {command}")
    if report is not None:
        require_extra("matplotlib", extra="report", wanted_by=f"erta bench {command} --report")


def opened(name: str, samples: int, calibration: int, steps: int, batch_size: int) -> Setting:
    """A bundled model with its prompts; held-out prompts repeat, with other noise, where asked for.

    Raises:
        InputError: The model has no prompts of its own, or too few to calibrate on.
    """
    model: TextModel = models().load(name)()
    few, _ = demo_prompts(model, name, 1)
    _, held_out = model.demo_prompts()  # type: ignore[attr-defined]
    if calibration > len(few):
        raise InputError(f"--calibration {calibration}: {name!r} has {len(few)} prompts for it")
    times = -(-samples // len(held_out))
    return Setting(
        model=model,
        calibration=few[:calibration],
        held_out=(held_out * times)[:samples],
        steps=steps,
        batch_size=batch_size,
    )


def spelled(
    command: str,
    model: str,
    *,
    calls: list[int],
    rows: list[str] | None,
    scheduler: str,
    **options: int,
) -> str:
    """The command line that makes the same table again."""
    parts = [f"erta bench {command} --model {model}"]
    parts += [f"--calls {number}" for number in calls]
    parts += [f'--row "{name}"' for name in rows or ()]
    parts += [f"--scheduler {scheduler}"] if scheduler else []
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    return " ".join(parts)
