"""Solvers: sigma schedules and the step from one sigma to the next, with declared capabilities."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.session import Interval


@dataclass(frozen=True, slots=True)
class Schedule:
    """A nominal schedule: `num_steps + 1` sigmas and what the network is told at each.

    The last time belongs to the end of sampling and is never told.
    """

    sigmas: tuple[float, ...]
    times: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def interval(
        self, index: int, start: float | None = None, time: float | None = None
    ) -> Interval:
        """The provisional interval of a step; `start` and `time` where it left the grid."""
        return Interval(
            index=index,
            start=self.sigmas[index] if start is None else start,
            end=self.sigmas[index + 1],
            time=self.times[index] if time is None else time,
            end_time=self.times[index + 1],
        )


class Solver(Protocol):
    """What the sampling loop needs of a solver.

    `capabilities` holds `"first_order"` when a step depends on nothing but its interval and
    output, so that the interval may be moved, and the prediction it integrates (`"velocity"` or
    `"epsilon"`).
    """

    @property
    def capabilities(self) -> frozenset[str]: ...

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule: ...

    def time_of(self, sigma: float) -> float: ...

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor: ...

    def step(
        self, x: Tensor, output: Tensor, interval: Interval, state: Any
    ) -> tuple[Tensor, Any]: ...


def checked_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """A user's sigma list as floats that fall strictly and end at 0 (appended if missing).

    Raises:
        InputError: The list is empty, not finite, negative or does not fall.
    """
    values = tuple(float(sigma) for sigma in sigmas)
    if values and values[-1] != 0.0:
        values = (*values, 0.0)
    falls = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falls or not all(math.isfinite(v) for v in values):
        raise InputError(
            f"sigmas must be finite and fall strictly towards 0, got {list(sigmas)[:8]}"
            + ("..." if len(sigmas) > 8 else "")
        )
    return values


def checked_shift(shift: float) -> float:
    """The schedule shift, refused unless positive and finite."""
    if not 0 < shift < math.inf:
        raise InputError(f"shift is {shift}, it must be positive and finite")
    return shift


def checked_steps(num_steps: int) -> int:
    """The number of steps, refused below 1."""
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, it must be at least 1")
    return num_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEuler:
    """Euler steps of the flow-matching ODE `dx/dsigma = v`.

    Latents are x = (1 - sigma) * clean + sigma * noise.

    Attributes:
        shift: Schedule shift `s * u / (1 + (s - 1) * u)` of uniform u; 1 is uniform in sigma.
        time_scale: The network is told `time_scale * sigma`.

    Raises:
        InputError: The shift is not positive and finite.

    Example:
        >>> FlowEuler(shift=1.0).schedule(2).sigmas
        (1.0, 0.5, 0.0)
    """

    shift: float = 3.0
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        checked_shift(self.shift)

    @property
    def capabilities(self) -> frozenset[str]:
        """First order, velocity prediction."""
        return frozenset({"first_order", "velocity"})

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """The shifted schedule, or the user's sigmas."""
        if sigmas is None:
            count = checked_steps(num_steps)
            uniform = [1 - i / count for i in range(count + 1)]
            grid = tuple(self.shift * u / (1 + (self.shift - 1) * u) for u in uniform)
        else:
            grid = checked_sigmas(sigmas)
        return Schedule(grid, tuple(self.time_of(sigma) for sigma in grid))

    def time_of(self, sigma: float) -> float:
        """What the network is told at `sigma`."""
        return self.time_scale * sigma

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Latents at `sigma`: pure noise, or a clean sample with noise mixed in (img2img)."""
        return noise if clean is None else (1 - sigma) * clean + sigma * noise

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        """`x + (end - start) * v`; keeps no state."""
        return x + (interval.end - interval.start) * output, None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowAdamsBashforth2:
    """Second-order Adams-Bashforth steps with variable step size on the flow-matching ODE.

    One network call a step, like Euler; the honest plain baseline at a small number of calls. It
    remembers the last velocity, so the interval cannot be moved under it.

    Raises:
        InputError: The shift is not positive and finite.
    """

    shift: float = 3.0
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        checked_shift(self.shift)

    @property
    def capabilities(self) -> frozenset[str]:
        """Velocity prediction; not first order."""
        return frozenset({"velocity"})

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """As `FlowEuler.schedule`."""
        return self._euler.schedule(num_steps, sigmas)

    def time_of(self, sigma: float) -> float:
        """What the network is told at `sigma`."""
        return self.time_scale * sigma

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """As `FlowEuler.noised`."""
        return self._euler.noised(clean, noise, sigma)

    @property
    def _euler(self) -> FlowEuler:
        return FlowEuler(shift=self.shift, time_scale=self.time_scale)

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        """`x + h * (v + r/2 * (v - v_before))`, r the ratio of the last two step sizes."""
        size = interval.end - interval.start
        velocity = output
        if state is not None:
            before, before_size = state
            velocity = output + (size / before_size / 2) * (output - before)
        return x + size * velocity, (output, size)


@lru_cache(maxsize=8)
def _training_sigmas(train_steps: int, beta_start: float, beta_end: float) -> tuple[float, ...]:
    """Sigma = sqrt((1 - abar) / abar) of the scaled-linear beta schedule, rising with time."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    return tuple(((1 - alphas) / alphas).sqrt().tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class DDIM:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with eta 0) for networks that predict noise.

    Latents are variance preserving, x = sqrt(abar) * clean + sqrt(1 - abar) * noise, and sigma is
    sqrt((1 - abar) / abar). The defaults are the scaled-linear betas of Stable Diffusion.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def capabilities(self) -> frozenset[str]:
        """First order, noise prediction."""
        return frozenset({"first_order", "epsilon"})

    @property
    def training_sigmas(self) -> tuple[float, ...]:
        """Sigma at every training time, rising."""
        return _training_sigmas(self.train_steps, self.beta_start, self.beta_end)

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """Trailing spacing over the training steps and a final sigma of 0, or the user's sigmas."""
        if sigmas is not None:
            grid = checked_sigmas(sigmas)
            return Schedule(grid, tuple(self.time_of(sigma) for sigma in grid))
        if num_steps > self.train_steps:
            raise InputError(f"num_steps {num_steps} exceeds the {self.train_steps} training steps")
        count = checked_steps(num_steps)
        times = [round(self.train_steps * (1 - i / count)) - 1 for i in range(count)]
        grid = (*(self.training_sigmas[time] for time in times), 0.0)
        return Schedule(grid, (*(float(time) for time in times), 0.0))

    def time_of(self, sigma: float) -> float:
        """Training time of `sigma`, interpolated linearly in log sigma between training steps."""
        table = self.training_sigmas
        right = bisect_left(table, sigma)
        if right == 0 or right == len(table):
            return float(min(right, len(table) - 1))
        low, high = math.log(table[right - 1]), math.log(table[right])
        return right - 1 + (math.log(sigma) - low) / (high - low)

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Latents at `sigma`: pure noise, or a clean sample with noise mixed in (img2img)."""
        if clean is None:
            return noise
        return (clean + sigma * noise) / math.sqrt(1 + sigma**2)

    def step(self, x: Tensor, output: Tensor, interval: Interval, state: Any) -> tuple[Tensor, Any]:
        """One DDIM step from `interval.start` to `interval.end`; keeps no state."""
        start, end = interval.start, interval.end
        scaled = x * math.sqrt(1 + start**2)
        return (scaled + (end - start) * output) / math.sqrt(1 + end**2), None
