"""Variance-preserving processes, at discrete timesteps and in continuous time.

Sigma is the ratio of noise and clean part, as in the schedules of diffusers.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling.solvers._processes import Sigma
from erta_framework.sampling.solvers._protocol import Prediction, check_falling, check_positive


class _VariancePreserving:
    """What the two variance-preserving processes share; sigma is the ratio of noise and clean."""

    __slots__ = ()
    predictions: ClassVar[tuple[Prediction, ...]] = ("epsilon", "sample", "v_prediction")
    traits: ClassVar[frozenset[str]] = frozenset()

    def scales(self, sigma: Sigma) -> tuple[Sigma, Sigma]:
        """`(1, sigma) / sqrt(1 + sigma^2)`: their squares sum to 1."""
        alpha = (1 + sigma**2) ** -0.5
        return alpha, sigma * alpha

    def stretch(self, sigma: float) -> float:
        """`sqrt(1 + sigma^2)`, which makes the clean part's factor 1."""
        return math.sqrt(1 + sigma**2)

    def slope(self, clean: Tensor, noise: Tensor) -> Tensor:
        """The noise."""
        return noise

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """The noise itself, or a clean sample with noise mixed in."""
        return noise if clean is None else (clean + sigma * noise) / math.sqrt(1 + sigma**2)


Betas = Literal["scaled_linear", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteVP(_VariancePreserving):
    """Variance preserving, trained at discrete timesteps (DDPM, arXiv 2006.11239).

    With abar the running product of `1 - beta`, `x = sqrt(abar) * clean + sqrt(1 - abar) * noise`
    and sigma is `sqrt((1 - abar) / abar)`. The defaults are those of Stable Diffusion.

    Attributes:
        train_steps: Number of training timesteps; the network's timestep is 0 to this minus 1.
        beta_start: First beta; not used by `"cosine"`.
        beta_end: Last beta, likewise.
        betas: `"linear"`, linear in the root (`"scaled_linear"`), or the cosine schedule
            (arXiv 2102.09672, eq. 17).

    Raises:
        InputError: A number is out of range.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: Betas = "scaled_linear"

    def __post_init__(self) -> None:
        check_positive(train_steps=self.train_steps)
        if self.betas not in BETAS:
            raise InputError(f"betas is {self.betas!r}, it must be one of {', '.join(BETAS)}")
        if self.betas != "cosine" and not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"betas go from {self.beta_start} to {self.beta_end}; they must rise within (0, 1)"
            )

    @property
    def training_sigmas(self) -> tuple[float, ...]:
        """Sigma at every training timestep, rising."""
        return _training_sigmas(self)

    def time_of(self, sigma: float) -> float:
        """Training timestep of `sigma`, interpolated linearly in log sigma between timesteps."""
        return interpolate_time(self.training_sigmas, sigma)

    def sigma_at(self, times: Tensor) -> Tensor:
        """Sigma at training timesteps, interpolated likewise."""
        logs = _training_logs(self, times.device, times.dtype)
        left = times.floor().long().clamp(0, max(len(logs) - 2, 0))
        right = (left + 1).clamp(max=len(logs) - 1)
        return (logs[left] + (times - left) * (logs[right] - logs[left])).exp()


def interpolate_time(table: Sequence[float], sigma: float) -> float:
    """Training timestep of `sigma`, interpolated linearly in log sigma between timesteps.

    Args:
        table: Sigma at every training timestep, rising.
        sigma: Below and above the table, the first and the last timestep.

    Example:
        >>> interpolate_time((1.0, 4.0), 2.0)
        0.5
    """
    right = bisect_left(table, sigma)
    if right == 0 or right == len(table):
        return float(min(right, len(table) - 1))
    low, high = math.log(table[right - 1]), math.log(table[right])
    return right - 1 + (math.log(sigma) - low) / (high - low)


def _linear(process: DiscreteVP) -> Tensor:
    return torch.linspace(
        process.beta_start, process.beta_end, process.train_steps, dtype=torch.float64
    )


def _scaled_linear(process: DiscreteVP) -> Tensor:
    ends = process.beta_start**0.5, process.beta_end**0.5
    return torch.linspace(*ends, process.train_steps, dtype=torch.float64) ** 2


def _cosine(process: DiscreteVP) -> Tensor:
    offset = 0.008  # keeps the first betas from being too small
    parts = torch.arange(process.train_steps + 1, dtype=torch.float64) / process.train_steps
    kept = torch.cos((parts + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)


BETAS: Mapping[Betas, Callable[[DiscreteVP], Tensor]] = {
    "scaled_linear": _scaled_linear,
    "linear": _linear,
    "cosine": _cosine,
}


@lru_cache(maxsize=8)
def _training_sigmas(process: DiscreteVP) -> tuple[float, ...]:
    alphas = torch.cumprod(1 - BETAS[process.betas](process), dim=0)
    return tuple(((1 - alphas) / alphas).sqrt().tolist())


@lru_cache(maxsize=8)
def _training_logs(process: DiscreteVP, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(_training_sigmas(process), device=device, dtype=dtype).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousVP(_VariancePreserving):
    """Variance preserving in continuous time, the VP SDE of arXiv 2011.13456 (eq. 11 and 33).

    `beta(t) = beta_min + t * (beta_max - beta_min)` for t from 0 to 1; with B its integral up to t,
    `x = exp(-B / 2) * clean + sqrt(1 - exp(-B)) * noise` and sigma is `sqrt(exp(B) - 1)`.

    Attributes:
        beta_min: Beta at t = 0.
        beta_max: Beta at t = 1.
        time_scale: The network's timestep is `time_scale * t`; 999 for the networks of score_sde.

    Raises:
        InputError: A number is not positive and finite, or beta falls.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(time_scale=self.time_scale)
        check_falling("beta_max", self.beta_max, "beta_min", self.beta_min)

    def time_of(self, sigma: float) -> float:
        """`time_scale * t`, with t from the integral `B = log(1 + sigma^2)`."""
        integral = math.log1p(sigma**2)
        root = math.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return self.time_scale * 2 * integral / (self.beta_min + root)

    def sigma_at(self, times: Tensor) -> Tensor:
        """`sqrt(exp(B) - 1)` at `t = times / time_scale`."""
        t = times / self.time_scale
        integral = t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2
        return integral.expm1().sqrt()
