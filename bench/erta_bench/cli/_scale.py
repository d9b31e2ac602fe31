"""The commands `erta bench scale` and `erta bench simulate`; they need lightning when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_framework.optional_dependencies import require_extra


def scale_command(
    model: Annotated[str, typer.Option(help="Name of a bundled model.")] = "shapes-wan",
    steps: Annotated[int, typer.Option(min=2, help="Steps of a sample.")] = 10,
    samples: Annotated[int, typer.Option(min=4, help="Samples a process and round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians count.")] = 7,
    processes: Annotated[int, typer.Option(min=2, help="The larger number of processes.")] = 2,
    json: options.Json = None,
) -> None:
    """Data-parallel sampling with 1 and 2 processes, one thread each, and what ranks send.

    `machine_limit` is what a second process adds to a plain loop of the same network, without this
    framework, as a share of twice the speed; `efficiency` is what it adds to a job, as a share of
    that. Both are steady sampling, without starting and ending.
    """
    require_extra("lightning", extra="fabric", wanted_by="erta bench scale")
    from erta_bench.scale import measure_scale

    bench = measure_scale(
        model=model,
        steps=steps,
        samples=samples,
        rounds=rounds,
        processes=processes,
        progress=True,
        command=f"erta bench scale --model {model} --steps {steps} --samples {samples} "
        f"--rounds {rounds} --processes {processes}",
    )
    bench.show(path=json)


def simulate_command(
    ranks: Annotated[
        list[int] | None, typer.Option(min=1, help="Ranks; repeatable. Default 64 and 1024.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the job.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Decides durations and deaths.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Put the jobs here, to measure this file system.")
    ] = None,
    json: options.Json = None,
) -> None:
    """A job of many ranks with the real claims, files and manifests, in simulated time.

    Once without failures and once with ranks and machines that die, others that join, and one
    outage of everything. Fails if a sample is lost, torn, made twice or begun without need.
    """
    require_extra("lightning", extra="fabric", wanted_by="erta bench simulate")
    from erta_bench.scale import simulate_jobs

    chosen = ranks or [64, 1024]
    spelled = " ".join(f"--ranks {count}" for count in chosen)
    bench = simulate_jobs(
        chosen,
        samples,
        seed=seed,
        folder=folder,
        progress=True,
        command=f"erta bench simulate {spelled} --samples {samples} --seed {seed}"
        + (f" --folder {folder}" if folder else ""),
    )
    bench.show(path=json)
