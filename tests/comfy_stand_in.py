"""A stand-in for what ComfyUI documents of its samplers: guiders, wrappers, batches, conditionings.

Its shape is ComfyUI's: `ModelPatcher.add_wrapper_with_key`, `WrappersMP`, executors that hand on,
`sample_sigmas` in the options of transformers, and conditionings that go through `apply_model` in
one batch, in reverse order, with `cond_or_uncond` saying which is which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    CALC_COND_BATCH = "calc_cond_batch"


class WrapperExecutor:
    """Calls the first wrapper with an executor of the rest; the last one is the function itself."""

    def __init__(self, original: Callable[..., Any], owner: Any, wrappers: Sequence[Any]) -> None:
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        first, *rest = self.wrappers
        return first(WrapperExecutor(self.original, self.class_obj, rest), *args, **kwargs)


class ModelSampling:
    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 1000


@dataclass
class BaseModel:
    """Predicts the clean sample; counts what it runs on.

    Attributes:
        seen: The `cond_or_uncond` of every run of the network.
    """

    model_sampling: ModelSampling = field(default_factory=ModelSampling)
    seen: list[list[int]] = field(default_factory=list)

    def apply_model(self, x: Tensor, t: Tensor, c_crossattn: Tensor, **options: Any) -> Tensor:
        self.seen.append(options["transformer_options"]["cond_or_uncond"])
        shape = (-1, *[1] * (x.ndim - 1))
        return torch.tanh(x / (1 + t.reshape(shape)) + c_crossattn.reshape(shape))


class ModelPatcher:
    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}

    def clone(self) -> ModelPatcher:
        copied = ModelPatcher(self.model)
        copied.model_options = {**self.model_options}
        copied.wrappers = {kind: {**held} for kind, held in self.wrappers.items()}
        return copied

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def list_wrappers(self, kind: str) -> list[Any]:
        return [each for held in self.wrappers.get(kind, {}).values() for each in held]


@dataclass
class KSampler:
    """A sampler around one of the functions below."""

    sampler_function: Callable[..., Tensor]

    def sample(
        self, guider: Guider, sigmas: Tensor, extra: dict[str, Any], noise: Tensor
    ) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return guider.predict_noise(x, sigma * x.new_ones(len(x)), extra["model_options"])

        return self.sampler_function(denoise, noise * sigmas[0], sigmas)


@dataclass
class Guider:
    """Classifier-free guidance; `split` runs each conditioning alone, as with little memory.

    `scale` of 1 leaves the negative conditioning out.
    """

    patcher: ModelPatcher
    scale: float = 3.0
    split: bool = False
    seen: list[Sequence[Any]] = field(default_factory=list)

    def sample(self, noise: Tensor, sampler: KSampler, sigmas: Tensor) -> Tensor:
        held = self.patcher.model_options["transformer_options"]
        options = {"transformer_options": {**held, "sample_sigmas": sigmas}}
        wrappers = self.patcher.list_wrappers(WrappersMP.SAMPLER_SAMPLE)
        run = WrapperExecutor(sampler.sample, sampler, wrappers)
        return run(self, sigmas, {"model_options": options}, noise)

    def predict_noise(self, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> Tensor:
        conds = [[0.5], None if self.scale == 1 else [-0.3]]
        cond, uncond = self.calc_cond_batch(conds, x, sigma, options)
        return uncond.add_((cond - uncond) * self.scale) if self.scale != 1 else cond

    def calc_cond_batch(
        self, conds: Sequence[Any], x: Tensor, sigma: Tensor, options: dict[str, Any]
    ) -> Sequence[Tensor]:
        wrappers = self.patcher.list_wrappers(WrappersMP.CALC_COND_BATCH)
        run = WrapperExecutor(self._calc_cond_batch, None, wrappers)
        return run(self.patcher.model, conds, x, sigma, options)

    def _calc_cond_batch(
        self, model: BaseModel, conds: Sequence[Any], x: Tensor, sigma: Tensor, options: Any
    ) -> list[Tensor]:
        found = [torch.zeros_like(x) for _ in conds]
        wanted = [place for place, cond in enumerate(conds) if cond is not None][::-1]
        for batch in [[each] for each in wanted] if self.split else [wanted]:
            output = model.apply_model(
                torch.cat([x] * len(batch)),
                torch.cat([sigma] * len(batch)),
                torch.tensor([conds[place][0] for place in batch for _ in range(len(x))]),
                transformer_options={**options["transformer_options"], "cond_or_uncond": batch},
            )
            for place, chunk in zip(batch, output.chunk(len(batch)), strict=True):
                found[place] = chunk.clone()
        return found


def sample_euler(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, later in pairwise(sigmas):
        x = x + (later - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def sample_two_step(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    """A multistep sampler: it remembers the prediction before."""
    old = None
    for sigma, later in pairwise(sigmas):
        new = denoise(x, sigma)
        used = new if old is None else 1.5 * new - 0.5 * old
        x, old = x + (later - sigma) * (x - used) / sigma, new
    return x


def sample_heun(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, later in pairwise(sigmas):
        slope = (x - denoise(x, sigma)) / sigma
        guess = x + (later - sigma) * slope
        if later > 0:
            slope = (slope + (guess - denoise(guess, later)) / later) / 2
        x = x + (later - sigma) * slope
    return x


def sample_midpoint(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
    for sigma, later in pairwise(sigmas):
        middle = (sigma + later) / 2
        guess = x + (middle - sigma) * (x - denoise(x, sigma)) / sigma
        x = x + (later - sigma) * (guess - denoise(guess, middle)) / middle
    return x
