"""Train shapes-wan: `python -m erta_bench.shapes_wan.train --steps 6000`.

Flow matching on procedurally rendered videos. Every batch follows from (seed, step), and the
checkpoint is written atomically, so an interrupted run continues as if it had not been
interrupted: start the same command again. `--steps` may be changed between runs; the learning
rate falls to zero over the last quarter of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from erta_bench.shapes_wan.training import Options, options_from, run, shifted_sigmas
from erta_integrations.shapes_wan.data import random_scenes, render, tokenize
from erta_integrations.shapes_wan.model import WEIGHTS, ShapesWan, default_device, save_weights

SHIFT, DROPOUT = 3.0, 0.1
DEFAULTS = Options(folder=Path("runs/shapes-wan"), output=WEIGHTS)


def flow_matching_loss(
    model: ShapesWan, options: Options, step: int, device: torch.device
) -> Tensor:
    """Mean squared velocity error on a batch that follows from (seed, step) alone.

    Sigmas are logit-normal, shifted by `SHIFT` toward noise as at sampling time.
    """
    generator = options.generator(step)
    scenes = random_scenes(options.batch, generator)
    video = render(scenes)
    tokens = tokenize(scenes.prompts())
    tokens[torch.rand(options.batch, generator=generator) < DROPOUT] = 0
    sigma = shifted_sigmas(options.batch, SHIFT, generator)
    noise = torch.randn(video.shape, generator=generator)
    video, tokens, sigma, noise = (t.to(device) for t in (video, tokens, sigma, noise))
    level = sigma.reshape(-1, 1, 1, 1, 1)
    embeds = model.words(tokens) * (tokens > 0).unsqueeze(-1)
    velocity = model((1 - level) * video + level * noise, sigma * 1000, embeds)
    loss: Tensor = (velocity - (noise - video)).square().mean()
    return loss


def train(options: Options) -> None:
    """Train (or continue), and write the weights at the end."""
    run(options, ShapesWan, flow_matching_loss, save_weights, default_device())


def main() -> None:
    """Command line of the training script."""
    train(options_from(DEFAULTS, __doc__))


if __name__ == "__main__":
    main()
