"""Train shapes-wan: `python -m erta_integrations.shapes_wan.train --steps 6000`.

Flow matching on procedurally rendered videos. Every batch follows from (seed, step), and the
checkpoint is written atomically, so an interrupted run continues as if it had not been
interrupted: start the same command again. `--steps` may be changed between runs; the learning
rate falls to zero over the last quarter of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erta_integrations.shapes_wan.data import random_scenes, render, tokenize
from erta_integrations.shapes_wan.model import (
    WEIGHTS,
    ShapesWan,
    default_device,
    save_weights,
)

SHIFT, DROPOUT, WARMUP, EMA = 3.0, 0.1, 100, 0.999


@dataclass(frozen=True, slots=True)
class Options:
    """What a training run is asked for."""

    steps: int = 6000
    batch: int = 32
    learning_rate: float = 1.5e-3
    seed: int = 0
    folder: Path = Path("runs/shapes-wan")
    output: Path = WEIGHTS
    save_every: int = 200


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, constant, then linear to zero over the last quarter of the run."""
    return min(1.0, (step + 1) / WARMUP, max(0.0, (steps - step) / max(1, steps // 4)))


def flow_matching_loss(
    model: ShapesWan, options: Options, step: int, device: torch.device
) -> Tensor:
    """Mean squared velocity error on a batch that follows from (seed, step) alone.

    Sigmas are logit-normal, shifted by `SHIFT` toward noise as at sampling time.
    """
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    scenes = random_scenes(options.batch, generator)
    video = render(scenes)
    tokens = tokenize(scenes.prompts())
    tokens[torch.rand(options.batch, generator=generator) < DROPOUT] = 0
    unit = torch.randn(options.batch, generator=generator).sigmoid()
    sigma = SHIFT * unit / (1 + (SHIFT - 1) * unit)
    noise = torch.randn(video.shape, generator=generator)
    video, tokens, sigma, noise = (t.to(device) for t in (video, tokens, sigma, noise))
    level = sigma.reshape(-1, 1, 1, 1, 1)
    embeds = model.words(tokens) * (tokens > 0).unsqueeze(-1)
    velocity = model((1 - level) * video + level * noise, sigma * 1000, embeds)
    loss: Tensor = (velocity - (noise - video)).square().mean()
    return loss


class Checkpoint:
    """Weights, moving average and AdamW moments in one safetensors file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(
        self,
        model: nn.Module,
        ema: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        seconds: float,
    ) -> None:
        tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{key}.{name}"] = optimizer.state[parameter][key]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        metadata = {"step": str(step), "seconds": str(seconds)}
        save_file(
            {k: v.detach().contiguous().clone() for k, v in tensors.items()}, partial, metadata
        )
        os.replace(partial, self.path)

    def load(
        self, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float]:
        """Restore everything; returns (steps done, seconds spent), (0, 0) without a checkpoint."""
        if not self.path.is_file():
            return 0, 0.0
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for part, module in (("model.", model), ("ema.", ema)):
            module.load_state_dict(
                {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
            )
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {
                key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
            }
        return int(metadata["step"]), float(metadata["seconds"])


@torch.no_grad()
def update_average(ema: nn.Module, model: nn.Module, step: int) -> None:
    """Exponential moving average of the weights, faster in the first steps."""
    decay = min(EMA, (1 + step) / (10 + step))
    for average, value in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(value, 1 - decay)


def train(options: Options) -> None:
    """Train (or continue), print a line every 50 steps, and write the weights at the end."""
    device = default_device()
    torch.manual_seed(options.seed)
    model, ema = ShapesWan().to(device), ShapesWan().to(device)
    ema.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    checkpoint = Checkpoint(options.folder / "checkpoint.safetensors")
    first, spent = checkpoint.load(model, ema, optimizer)
    start = time.perf_counter() - spent
    losses: list[float] = []
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_factor(step, options.steps)
        loss = flow_matching_loss(model, options, step, device)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_average(ema, model, step)
        losses = [*losses[-199:], loss.item()]
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - start
            mean = sum(losses) / len(losses)
            print(
                json.dumps({"step": step + 1, "loss": round(mean, 4), "seconds": round(seconds)}),
                flush=True,
            )
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            checkpoint.save(model, ema, optimizer, step + 1, time.perf_counter() - start)
    facts = {
        "steps": options.steps,
        "batch": options.batch,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - start),
        "loss": round(sum(losses) / max(1, len(losses)), 4),
        "device": device.type,
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    save_weights(ema, options.output, {"training": json.dumps(facts)})
    print(json.dumps({"weights": str(options.output), **facts}))


def main() -> None:
    """Command line of the training script."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--folder", type=Path, default=default.folder)
    parser.add_argument("--output", type=Path, default=default.output)
    parser.add_argument("--save-every", type=int, default=default.save_every)
    train(Options(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
