"""The commands `erta bench masked` and `erta bench masked-speed`."""

from __future__ import annotations

from typing import Annotated

import typer

from erta_bench.cli._options import Json
from erta_framework.console import make_console


def masked_command(
    model: Annotated[str, typer.Option(help="words or permutations.")] = "words",
    samples: Annotated[int, typer.Option(min=1, help="Sequences of a seed set.")] = 400,
    seed_sets: Annotated[int, typer.Option(min=1, help="Repetitions with other seeds.")] = 3,
    order: Annotated[
        list[str] | None,
        typer.Option(help="random, 'blocks of 4', 'left to right' or confidence; repeatable."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the Gumbel noise.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences of a batch.")] = 200,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    json: Json = None,
) -> None:
    """Rules that reuse keys and values of masked language models, in four orders of decoding.

    Validity is the share of words (or permutations) that are right; distinct is how many different
    right ones all seed sets gave. Rows and work are what the network ran on, in parts of the run
    without a cache; seconds are processor seconds in parts of the same. Decoding two tokens a
    step takes half the steps.
    """
    from erta_bench.masked import MaskedSetting, compare_rules

    setting = MaskedSetting(
        model=model,
        samples=samples,
        seed_sets=seed_sets,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
    )
    chosen = "".join(f" --order {name!r}" for name in order or ())
    command = (
        f"erta bench masked --model {model} --samples {samples} --seed-sets {seed_sets}{chosen} "
        f"--temperature {temperature:g} --batch-size {batch_size} --seed {seed}"
    )
    bench = compare_rules(
        setting,
        orders=order or (),
        console=make_console(stderr=True),
        command=command,
        keep=lambda so_far: None if json is None else so_far.write(json),
    )
    bench.show(path=json)


def masked_speed_command(
    length: Annotated[int, typer.Option(min=2, help="Length of the sequence.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 4,
    width: Annotated[int, typer.Option(min=2, help="Features of a position.")] = 384,
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers.")] = 6,
    repeats: Annotated[int, typer.Option(min=1, help="Calls of each; the median counts.")] = 7,
    json: Json = None,
) -> None:
    """A network call on part of the positions beside the full pass, and how near it is to ideal.

    The network has random weights; choosing, gathering and scattering the rows is part of the time.
    """
    from erta_bench.masked import SpeedSetting, measure_speed

    setting = SpeedSetting(length=length, batch=batch, width=width, layers=layers, repeats=repeats)
    command = (
        f"erta bench masked-speed --length {length} --batch {batch} --width {width} "
        f"--layers {layers} --repeats {repeats}"
    )
    measure_speed(setting, command=command).show(path=json)
