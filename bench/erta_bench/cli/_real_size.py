"""The command `erta bench real-size`; it needs diffusers when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from erta_bench.cli import _options as options
from erta_framework.cli import Device
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.sampling import resolve_device


def real_size_command(
    network: Annotated[
        list[str] | None,
        typer.Option(help="wan2.1-1.3b or flux.1; repeatable. Default both."),
    ] = None,
    steps: Annotated[int, typer.Option(min=4, help="Steps a request.")] = 10,
    interval: Annotated[int, typer.Option(min=2, help="Every so many steps are computed.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Requests of each; the least counts.")] = 2,
    compiled: Annotated[
        bool, typer.Option("--compiled/--eager", help="Compiled blocks too, or eager ones alone.")
    ] = True,
    tiny: Annotated[
        bool, typer.Option(help="Few and narrow layers, to try the script where no GPU is.")
    ] = False,
    device: Device = "auto",
    json: options.Json = None,
) -> None:
    """Seconds, efficiency, memory and synchronisations at real size, with random weights.

    The networks have the sizes of Wan2.1-1.3B (480 x 832, 81 frames) and FLUX.1 (1024 x 1024) and
    run in WanPipeline and FluxPipeline, in bfloat16. Nothing is downloaded: what is measured
    depends on shapes, not on weights, and pictures are noise.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="diffusers", wanted_by="erta bench real-size")
    import torch

    from erta_bench.real_size import NETWORKS, Setup, measure_real_size, shrink
    from erta_bench.setting import spell_device

    names = network or list(NETWORKS)
    strange = [name for name in names if name not in NETWORKS]
    if strange:
        raise InputError(f"there is no network {strange[0]!r}; give {' or '.join(NETWORKS)}")
    placed = resolve_device(device, 1)
    on_gpu = placed.type == "cuda"
    if not on_gpu and not tiny:
        raise InputError(
            "this needs a CUDA device, and a request of real size takes hours on a CPU; "
            "run it where there is one, or try the script with --tiny"
        )
    chosen = [shrink(NETWORKS[name]) if tiny else NETWORKS[name] for name in names]
    setup = Setup(
        steps=steps,
        interval=interval,
        repeats=repeats,
        device=placed,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    parts = [f"--network {name}" for name in network or ()]
    parts += [f"--steps {steps} --interval {interval} --repeats {repeats}"]
    parts += ["--compiled" if compiled else "--eager", *(["--tiny"] if tiny else [])]
    command = f"erta bench real-size {' '.join(parts)}{spell_device(device)}"
    bench = measure_real_size(
        chosen,
        setup,
        compiled=(False, True) if compiled else (False,),
        command=command,
        say=make_console(stderr=True).print,
    )
    bench.show(path=json)
