"""Train an image model: `python -m erta_bench.shapes_image.train shapes-flux`.

The script of shapes-wan on rendered stills: flow matching for `shapes-flux`, noise prediction on
the scaled-linear betas of Stable Diffusion for `shapes-unet`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from erta_bench.shapes_image._data import random_stills, render_stills, tokenize
from erta_bench.shapes_image._flux import ShapesFlux
from erta_bench.shapes_image._model import ShapesImage, find_weights, save_weights
from erta_bench.shapes_image._unet import ShapesUNet
from erta_bench.training import TrainingOptions, draw_shifted_sigmas, parse_options, train_model
from erta_framework.sampling import DDIM
from erta_integrations.shapes_wan.model import default_device

SHIFT, DROPOUT = 3.0, 0.1


def draw_batch(
    model: ShapesImage, options: TrainingOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images `[B, 3, H, W]` and their prompts' embeddings, some of them dropped."""
    stills = random_stills(options.batch, generator)
    tokens = tokenize(stills.prompts())
    tokens[torch.rand(options.batch, generator=generator) < DROPOUT] = 0
    return render_stills(stills), model.embed(tokens.to(model.words.weight.device))


def compute_flow_loss(
    model: ShapesImage, options: TrainingOptions, step: int, device: torch.device
) -> Tensor:
    """Mean squared velocity error."""
    generator = options.generator(step)
    image, embeds = draw_batch(model, options, generator)
    sigma = draw_shifted_sigmas(options.batch, SHIFT, generator)
    noise = torch.randn(image.shape, generator=generator)
    image, sigma, noise = (t.to(device) for t in (image, sigma, noise))
    level = sigma.reshape(-1, 1, 1, 1)
    velocity = model((1 - level) * image + level * noise, sigma * 1000, embeds)
    loss: Tensor = (velocity - (noise - image)).square().mean()
    return loss


def compute_noise_loss(
    model: ShapesImage, options: TrainingOptions, step: int, device: torch.device
) -> Tensor:
    """Mean squared noise error, at times drawn evenly."""
    generator = options.generator(step)
    image, embeds = draw_batch(model, options, generator)
    time = torch.randint(DDIM().train_steps, (options.batch,), generator=generator)
    sigma = torch.tensor(DDIM().training_sigmas)[time].reshape(-1, 1, 1, 1).float()
    noise = torch.randn(image.shape, generator=generator)
    image, time, sigma, noise = (t.to(device) for t in (image, time, sigma, noise))
    predicted = model((image + sigma * noise) / (1 + sigma**2).sqrt(), time, embeds)
    loss: Tensor = (predicted - noise).square().mean()
    return loss


Loss = Callable[[ShapesImage, TrainingOptions, int, torch.device], Tensor]
MODELS: dict[str, tuple[type[ShapesImage], Loss]] = {
    ShapesFlux.name: (ShapesFlux, compute_flow_loss),
    ShapesUNet.name: (ShapesUNet, compute_noise_loss),
}


def train_shapes_image() -> None:
    """Command line of the training script."""
    if len(sys.argv) < 2 or sys.argv[1] not in MODELS:
        sys.exit(f"{__doc__}\nfirst argument: {' or '.join(MODELS)}")
    name = sys.argv.pop(1)
    model, loss = MODELS[name]
    defaults = TrainingOptions(folder=Path("runs") / name, output=find_weights(model))
    train_model(parse_options(defaults, __doc__), model, loss, save_weights, default_device())


if __name__ == "__main__":
    train_shapes_image()
