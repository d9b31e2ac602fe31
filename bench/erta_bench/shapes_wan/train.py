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

from erta_bench.training import TrainingOptions, draw_shifted_sigmas, parse_options, train_model
from erta_integrations.shapes_wan.data import random_scenes, render, tokenize
from erta_integrations.shapes_wan.model import WEIGHTS, ShapesWan, default_device, save_weights

SHIFT, DROPOUT = 3.0, 0.1
DEFAULTS = TrainingOptions(folder=Path("runs/shapes-wan"), output=WEIGHTS)


def compute_flow_loss(
    model: ShapesWan, options: TrainingOptions, step: int, device: torch.device
) -> Tensor:
    """Mean squared velocity error on a batch that follows from (seed, step) alone.

    Sigmas are logit-normal, shifted by `SHIFT` toward noise as at sampling time.
    """
    generator = options.generator(step)
    scenes = random_scenes(options.batch, generator)
    video = render(scenes)
    tokens = tokenize(scenes.prompts())
    tokens[torch.rand(options.batch, generator=generator) < DROPOUT] = 0
    sigma = draw_shifted_sigmas(options.batch, SHIFT, generator)
    noise = torch.randn(video.shape, generator=generator)
    video, tokens, sigma, noise = (t.to(device) for t in (video, tokens, sigma, noise))
    level = sigma.reshape(-1, 1, 1, 1, 1)
    embeds = model.words(tokens) * (tokens > 0).unsqueeze(-1)
    velocity = model((1 - level) * video + level * noise, sigma * 1000, embeds)
    loss: Tensor = (velocity - (noise - video)).square().mean()
    return loss


def train(options: TrainingOptions) -> None:
    """Train or continue, and write the weights at the end."""
    train_model(options, ShapesWan, compute_flow_loss, save_weights, default_device())


def train_shapes_wan() -> None:
    """Command line of the training script."""
    train(parse_options(DEFAULTS, __doc__))


if __name__ == "__main__":
    train_shapes_wan()
