"""Checks that the image models learned: `python -m erta_bench.shapes_image.check`.

Samples the held-out prompts with the shipped weights and reads colour, shape and place from the
pixels; the same measures on rendered images show what a perfect model would score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from erta_bench.core import Bench, Row, Value
from erta_bench.setting import describe_model, repeat_prompts
from erta_bench.shapes_image._accuracy import measure_shares
from erta_bench.shapes_image._data import PLACES, random_stills, render_stills
from erta_bench.shapes_image._flux import ShapesFlux
from erta_bench.shapes_image._model import ShapesImage, load_model
from erta_bench.shapes_image._unet import ShapesUNet
from erta_framework import CFG, Sampler
from erta_framework.console import make_console
from erta_framework.sampling.solvers import DDIM, FlowEuler
from erta_integrations.shapes_wan.data import COLORS, SHAPES

CHANCE = {"color": 1 / len(COLORS), "shape": 1 / len(SHAPES), "place": 1 / len(PLACES)}
COLUMNS = {
    "model": "model",
    "name": "measure",
    "samples": "images",
    "accuracy": "share",
    "rendered": "rendered",
    "chance": "chance",
}


def make_sampler(model: type[ShapesImage], num_steps: int, scale: float = 3.0) -> Sampler:
    """The own loop on the grid that a model was trained for."""
    if model is ShapesUNet:
        return Sampler(solver=DDIM(), guidance=CFG(scale=scale, batched=True), num_steps=num_steps)
    return Sampler(solver=FlowEuler(), guidance=CFG(scale=scale), num_steps=num_steps)


def check_model(model: ShapesImage, count: int, num_steps: int, seed: int) -> list[Row]:
    """Sample held-out prompts, read the images, and make a record of each measure."""
    prompts = repeat_prompts(model.demo_prompts()[1], count)
    found = measure_shares(
        make_sampler(type(model), num_steps).sample(model, prompts, seed=seed).samples, prompts
    )
    stills = random_stills(count, torch.Generator().manual_seed(seed))
    perfect = measure_shares(render_stills(stills), stills.prompts())
    return [
        {
            "model": model.name,
            "name": name,
            "samples": count,
            "accuracy": share,
            "rendered": perfect[name],
            "chance": CHANCE[name],
        }
        for name, share in found.items()
    ]


def check_shapes_image(arguments: Sequence[str] | None = None) -> None:
    """Command line of the check."""
    parser = argparse.ArgumentParser(
        prog="python -m erta_bench.shapes_image.check", description=__doc__
    )
    parser.add_argument("--prompts", type=int, default=96, help="images of each model")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first image's noise")
    parser.add_argument("--json", type=Path, help="file for the records")
    options = parser.parse_args(arguments)
    if options.prompts < 1:
        parser.error(f"--prompts is {options.prompts}, it must be at least 1")
    rows: list[Row] = []
    settings: dict[str, Value] = {"steps": options.steps, "seed": options.seed}
    for kind in (ShapesFlux, ShapesUNet):
        model = load_model(kind)
        rows += check_model(model, options.prompts, options.steps, options.seed)
        settings |= describe_model(model, model.name)
    command = f"python -m erta_bench.shapes_image.check --prompts {options.prompts}"
    Bench(command, rows, COLUMNS, settings).show(make_console(), options.json)


if __name__ == "__main__":
    check_shapes_image()
