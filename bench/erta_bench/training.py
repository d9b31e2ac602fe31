"""Trains the bundled models: resumable, and the same on every run.

Every batch follows from (seed, step), and the checkpoint is replaced atomically, so an interrupted
run continues as if it had not been interrupted: start the same command again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

WARMUP, EMA = 100, 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """The settings of a training run.

    Attributes:
        folder: Where the checkpoint lives.
        output: The file of the weights.
        steps: Optimiser steps; may be changed between runs.
        batch: Samples a step.
        learning_rate: Before it falls to zero over the last quarter of the steps.
        seed: Of the initial weights and of all batches.
        save_every: Steps between checkpoints.
    """

    folder: Path
    output: Path
    steps: int = 6000
    batch: int = 32
    learning_rate: float = 1.5e-3
    seed: int = 0
    save_every: int = 200

    def generator(self, step: int) -> torch.Generator:
        """The source of all that is random in a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


def parse_options(defaults: TrainingOptions, description: str | None) -> TrainingOptions:
    """Read the options from the command line, `--learning-rate` for `learning_rate`."""
    parser = argparse.ArgumentParser(description=description)
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        kind = Path if isinstance(value, Path) else type(value)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=value)
    return TrainingOptions(**vars(parser.parse_args()))


def scale_learning_rate(step: int, steps: int) -> float:
    """Warm-up, constant, then linear to zero over the last quarter of the run."""
    return min(1.0, (step + 1) / WARMUP, max(0.0, (steps - step) / max(1, steps // 4)))


def draw_shifted_sigmas(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Logit-normal sigmas `[B]`, shifted toward noise as at sampling time."""
    unit = torch.randn(batch, generator=generator).sigmoid()
    return shift * unit / (1 + (shift - 1) * unit)


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


def train_model(
    options: TrainingOptions,
    make: Callable[[], M],
    compute_loss: Callable[[M, TrainingOptions, int, torch.device], Tensor],
    save: Callable[[M, Path, dict[str, str]], None],
    device: torch.device,
) -> None:
    """Train or continue, print a line every 50 steps, and write the weights at the end.

    Args:
        options: Steps, batch and where files lie.
        make: Makes a model with fresh weights.
        compute_loss: The loss of one step, from (model, options, step, device).
        save: Writes the averaged model's weights, with facts about the training.
        device: Where to train.
    """
    torch.manual_seed(options.seed)
    model, ema = make().to(device), make().to(device)
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
            group["lr"] = options.learning_rate * scale_learning_rate(step, options.steps)
        loss = compute_loss(model, options, step, device)
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
    save(ema, options.output, {"training": json.dumps(facts)})
    print(json.dumps({"weights": str(options.output), **facts}))
