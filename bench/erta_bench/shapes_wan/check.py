"""Checks that shapes-wan learned: `python -m erta_bench.shapes_wan.check`.

Renders prompts with the shipped weights, 50 steps and classifier-free guidance, and reads from the
pixels whether colour, shape and direction of motion are what the prompt asked for. The same
measures are applied to rendered videos whose answer is known, which shows what a perfect model
would score. Exits with 1 below a target.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from erta_bench.core import Bench, Row, Value
from erta_bench.setting import describe_model
from erta_framework import CFG, ProgressBar, Sampler
from erta_framework.console import make_console
from erta_integrations.shapes_wan.accuracy import Accuracy, accuracy
from erta_integrations.shapes_wan.data import (
    COLORS,
    DIRECTIONS,
    SHAPES,
    all_prompts,
    random_scenes,
    render,
)
from erta_integrations.shapes_wan.model import WEIGHTS, ShapesWan, load_model

TARGETS = {"color": 0.95, "shape": 0.80, "direction": 0.90}
CHANCE = {"color": 1 / len(COLORS), "shape": 1 / len(SHAPES), "direction": 1 / len(DIRECTIONS)}
COLUMNS = {
    "name": "measure",
    "samples": "videos",
    "right": "right",
    "accuracy": "share",
    "target": "target",
    "rendered": "rendered",
    "chance": "chance",
    "passed": "passed",
}


@dataclass(frozen=True, slots=True)
class Check:
    """What the check found.

    Attributes:
        sampled: Accuracy of the model's videos.
        rendered: Accuracy of as many rendered videos: what a perfect model would score.
        seconds: Wall seconds of sampling.
    """

    sampled: Accuracy
    rendered: Accuracy
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(self.sampled.share(name) >= target for name, target in TARGETS.items())

    def rows(self) -> list[Row]:
        """One record a measure."""
        return [
            {
                "name": name,
                "samples": self.sampled.samples,
                "right": getattr(self.sampled, name),
                "accuracy": self.sampled.share(name),
                "target": target,
                "rendered": self.rendered.share(name),
                "chance": CHANCE[name],
                "passed": self.sampled.share(name) >= target,
            }
            for name, target in TARGETS.items()
        ]


def choose_prompts(count: int) -> list[str]:
    """`count` prompts: every one of the 72 once, in a fixed shuffled order, then all again."""
    every = all_prompts()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    return [every[order[k % len(every)]] for k in range(count)]


def check_model(
    model: ShapesWan,
    count: int = 144,
    *,
    steps: int = 50,
    scale: float = 3.0,
    seed: int = 0,
    progress: bool = False,
) -> Check:
    """Sample `count` prompts, each from its own noise, and measure them.

    Args:
        model: The trained model.
        count: Number of videos; 144 are all prompts from two seeds each.
        steps: Sampling steps.
        scale: Guidance scale.
        seed: Video k is drawn from the noise of `seed + k`.
        progress: Show a progress bar.
    """
    prompts = choose_prompts(count)
    callbacks = [ProgressBar()] if progress else []
    sampler = Sampler(callbacks=callbacks, guidance=CFG(scale=scale), num_steps=steps)
    result = sampler.sample(model, prompts, seed=seed)
    scenes = random_scenes(count, torch.Generator().manual_seed(seed))
    return Check(
        sampled=accuracy(result.samples, prompts),
        rendered=accuracy(render(scenes), scenes.prompts()),
        seconds=result.seconds,
    )


def check_shapes_wan(arguments: Sequence[str] | None = None) -> int:
    """Command line of the check; the exit status is 1 below a target."""
    parser = argparse.ArgumentParser(
        prog="python -m erta_bench.shapes_wan.check", description=__doc__
    )
    parser.add_argument("--prompts", type=int, default=144, help="number of videos")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first video's noise")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="weights file")
    parser.add_argument("--json", type=Path, help="file for the records")
    options = parser.parse_args(arguments)
    if options.prompts < 1:
        parser.error(f"--prompts is {options.prompts}, it must be at least 1")
    if not options.weights.is_file():
        parser.error(f"--weights: there is no file {options.weights}")
    model = load_model(options.weights)
    found = check_model(
        model,
        options.prompts,
        steps=options.steps,
        scale=options.scale,
        seed=options.seed,
        progress=True,
    )
    console = make_console()
    settings: dict[str, Value] = {
        **describe_model(model),
        "steps": options.steps,
        "guidance_scale": options.scale,
        "seed": options.seed,
        "seconds": found.seconds,
    }
    command = f"python -m erta_bench.shapes_wan.check --prompts {options.prompts}"
    Bench(command, found.rows(), COLUMNS, settings).show(console, options.json)
    for prompt, seen in found.sampled.wrong:
        console.print(f"asked for {prompt!r}, looks like {seen!r}", highlight=False, soft_wrap=True)
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(check_shapes_wan())
