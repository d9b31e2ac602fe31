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

from erta_bench.shapes_image.data import random_stills, render_stills, tokenize
from erta_bench.shapes_image.model import (
    ShapesFlux,
    ShapesImage,
    ShapesUNet,
    save_weights,
    weights_file,
)
from erta_bench.shapes_wan.training import Options, options_from, run, shifted_sigmas
from erta_framework.sampling import DDIM
from erta_integrations.shapes_wan.model import default_device

SHIFT, DROPOUT = 3.0, 0.1


def batch_of(
    model: ShapesImage, options: Options, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images `[B, 3, H, W]` and their prompts' embeddings, some of them dropped."""
    stills = random_stills(options.batch, generator)
    tokens = tokenize(stills.prompts())
    tokens[torch.rand(options.batch, generator=generator) < DROPOUT] = 0
    return render_stills(stills), model.embed(tokens.to(model.words.weight.device))


def flow_loss(model: ShapesImage, options: Options, step: int, device: torch.device) -> Tensor:
    """Mean squared velocity error."""
    generator = options.generator(step)
    image, embeds = batch_of(model, options, generator)
    sigma = shifted_sigmas(options.batch, SHIFT, generator)
    noise = torch.randn(image.shape, generator=generator)
    image, sigma, noise = (t.to(device) for t in (image, sigma, noise))
    level = sigma.reshape(-1, 1, 1, 1)
    velocity = model((1 - level) * image + level * noise, sigma * 1000, embeds)
    loss: Tensor = (velocity - (noise - image)).square().mean()
    return loss


def noise_loss(model: ShapesImage, options: Options, step: int, device: torch.device) -> Tensor:
    """Mean squared noise error, at times drawn evenly."""
    generator = options.generator(step)
    image, embeds = batch_of(model, options, generator)
    time = torch.randint(DDIM().train_steps, (options.batch,), generator=generator)
    sigma = torch.tensor(DDIM().training_sigmas)[time].reshape(-1, 1, 1, 1).float()
    noise = torch.randn(image.shape, generator=generator)
    image, time, sigma, noise = (t.to(device) for t in (image, time, sigma, noise))
    predicted = model((image + sigma * noise) / (1 + sigma**2).sqrt(), time, embeds)
    loss: Tensor = (predicted - noise).square().mean()
    return loss


Loss = Callable[[ShapesImage, Options, int, torch.device], Tensor]
MODELS: dict[str, tuple[type[ShapesImage], Loss]] = {
    ShapesFlux.name: (ShapesFlux, flow_loss),
    ShapesUNet.name: (ShapesUNet, noise_loss),
}


def main() -> None:
    """Command line of the training script."""
    if len(sys.argv) < 2 or sys.argv[1] not in MODELS:
        sys.exit(f"{__doc__}\nfirst argument: {' or '.join(MODELS)}")
    name = sys.argv.pop(1)
    model, loss = MODELS[name]
    defaults = Options(folder=Path("runs") / name, output=weights_file(model))
    run(options_from(defaults, __doc__), model, loss, save_weights, default_device())


if __name__ == "__main__":
    main()
