"""Integrators: the step from one sigma to the next, with one network call each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from erta_framework.sampling.solvers._parametrisation import Parametrisation
from erta_framework.sampling.solvers._processes import Process
from erta_framework.sampling.solvers._protocol import SolverState
from erta_framework.session import Interval


class Integrator(Protocol):
    """Takes latents over an interval. Integrators are frozen dataclasses without memory."""

    @property
    def is_one_step(self) -> bool:
        """Whether a step needs nothing of the steps before it."""
        ...

    def step(
        self,
        form: Parametrisation,
        x: Tensor,
        output: Tensor,
        interval: Interval,
        state: SolverState,
    ) -> tuple[Tensor, SolverState]:
        """As `Solver.step`, for outputs of the parametrisation `form`."""
        ...


@dataclass(frozen=True, slots=True)
class Euler:
    """First order: DDIM without noise (arXiv 2010.02502, eq. 12), Euler in the process's sigma.

    The step keeps what the network says of clean part and noise, and mixes them for the new sigma.
    """

    @property
    def is_one_step(self) -> bool:
        """Yes."""
        return True

    def step(
        self,
        form: Parametrisation,
        x: Tensor,
        output: Tensor,
        interval: Interval,
        state: SolverState,
    ) -> tuple[Tensor, SolverState]:
        """Keeps no state; at sigma 0 the predicted clean sample, exactly for `"sample"`."""
        if form.is_slope:
            return move_on_line(form.process, x, output, interval), None
        alpha, level = form.process.scales(interval.end)
        clean = form.clean(x, output, interval.start)
        return alpha * clean + level * form.noise(x, output, interval.start), None


@dataclass(frozen=True, slots=True)
class AdamsBashforth2:
    """Second order: the slope is continued by a line through the last two, with unequal steps.

    The first step that runs is Euler's.
    """

    @property
    def is_one_step(self) -> bool:
        """No: it remembers the slope and the size of the step before."""
        return False

    def step(
        self,
        form: Parametrisation,
        x: Tensor,
        output: Tensor,
        interval: Interval,
        state: SolverState,
    ) -> tuple[Tensor, SolverState]:
        """`slope + r/2 * (slope - slope_before)`, r the ratio of the last two step sizes."""
        size = interval.end - interval.start
        slope = used = form.slope(x, output, interval.start)
        if state is not None:
            before, before_size = state
            used = slope + (size / before_size / 2) * (slope - before)
        return move_on_line(form.process, x, used, interval), (slope, size)


@dataclass(frozen=True, slots=True)
class DPMSolverPP2M:
    """Second order: DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2), for any prediction.

    It continues the predicted clean sample by a line in `log(alpha / level)`. The first step that
    runs and the step to sigma 0 are of first order, as in diffusers.
    """

    @property
    def is_one_step(self) -> bool:
        """No: it remembers the clean sample and the size of the step before."""
        return False

    def step(
        self,
        form: Parametrisation,
        x: Tensor,
        output: Tensor,
        interval: Interval,
        state: SolverState,
    ) -> tuple[Tensor, SolverState]:
        """`level'/level * x + alpha' * (1 - exp(-h)) * clean`, h the step in log-SNR / 2."""
        (alpha, level), (alpha_end, level_end) = map(
            form.process.scales, (interval.start, interval.end)
        )
        decay = alpha * level_end / (alpha_end * level)
        size = -math.log(decay) if decay > 0 else math.inf  # pure noise, or the end
        clean = used = form.clean(x, output, interval.start)
        if state is not None and level_end > 0:
            before, before_size = state
            used = clean + (size / before_size / 2) * (clean - before)
        return level_end / level * x + alpha_end * (1 - decay) * used, (clean, size)


def move_on_line(process: Process, x: Tensor, slope: Tensor, interval: Interval) -> Tensor:
    """Latents at the end of the interval if `slope` holds over all of it."""
    start, end = process.stretch(interval.start), process.stretch(interval.end)
    moved = (x if start == 1.0 else x * start) + (interval.end - interval.start) * slope
    return moved if end == 1.0 else moved / end
