"""The contract of a solver, the schedule that it makes, and the checks of their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.session import Interval

Prediction = Literal["velocity", "epsilon", "sample", "v_prediction"]
"""What a network predicts, in the words of diffusers: noise minus clean part (flow matching), the
noise, the clean sample x0, or `alpha * noise - level * clean` (arXiv 2202.00512)."""

SolverState = Any
"""What a solver remembers from one step to the next; None at the first step that runs."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A nominal schedule: `num_steps + 1` sigmas and the network's timestep at each.

    The last timestep belongs to the end of sampling; the network never gets it.
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
    """What the sampling loop needs of a solver. Write your own by offering these six members.

    A solver is immutable: what a step leaves for the next one travels in its state. To be named in
    a configuration it must be a frozen dataclass, whose fields are the options, registered under
    the entry-point group `erta_framework.solvers`. Its `repr` identifies it in profiles.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """What policies may rely on; a policy that requires more is refused before sampling.

        `"first_order"`: a step depends on nothing but its latents, interval and output, so that
        a policy may move the end of the interval. Leave it out if `step` keeps a state.
        `"velocity"`: latents are `(1 - sigma) * clean + sigma * noise` and the output is their
        derivative by sigma. `"epsilon"`: the output is the noise, and latents are variance
        preserving with sigma the ratio of noise and clean part; with `"variance_exploding"` they
        are `clean + sigma * noise`. `"sample"` and `"v_prediction"`: the output is the clean
        sample, or v of variance-preserving latents. `"stochastic"`: steps draw noise, so that two
        runs of one sample differ.
        """
        ...

    @property
    def prediction(self) -> Prediction:
        """What the network must predict; also one of the capabilities."""
        ...

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """The grid of so many steps, or of the user's sigmas: they fall strictly and end at 0.

        Raises:
            InputError: There is no such grid.
        """
        ...

    def time_of(self, sigma: float) -> float:
        """The network's timestep at `sigma`, finite at 0 too; in the unit of the network."""
        ...

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Latents at `sigma`, all `[B, C, ...]`: of a clean sample, or where sampling begins.

        Args:
            clean: The sample that noise is mixed into (img2img); None starts from noise alone.
            noise: Gaussian noise of variance 1.
            sigma: Where on the schedule.
        """
        ...

    def step(
        self, x: Tensor, output: Tensor, interval: Interval, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """Latents at `interval.end` and the state for the next step.

        Args:
            x: Latents at `interval.start`, `[B, C, ...]`; not to be written to.
            output: What the network predicted there, after guidance, or what a policy reused.
            interval: The interval to integrate; sigma falls from its start to its end.
            state: What the step before returned; None at the first step that runs.
        """
        ...


@runtime_checkable
class KnowsScales(Protocol):
    """A solver that also says how its latents are mixed, which policies that scale noise need."""

    def scales(self, sigma: float) -> tuple[float, float]:
        """`(alpha, level)` of `x = alpha * clean + level * noise` at sigma."""
        ...


def as_sigmas(sigmas: Sequence[float]) -> tuple[float, ...]:
    """A list of sigmas as floats that fall strictly and end at 0 (appended if missing).

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


def check_positive(**numbers: float) -> None:
    """Refuse numbers that are not positive and finite; the keyword is the name in the message.

    Raises:
        InputError: Names the first one and its value.
    """
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise InputError(f"{name} is {number}, it must be positive and finite")


def check_falling(high: str, above: float, low: str, below: float) -> None:
    """Refuse a range whose upper end is not above its lower end, both positive and finite.

    Raises:
        InputError: Names both ends and their values.
    """
    check_positive(**{high: above, low: below})
    if not above > below:
        raise InputError(f"{high} is {above}, it must be above {low}, which is {below}")


def check_steps(num_steps: int) -> int:
    """The number of steps, refused below 1.

    Raises:
        InputError: It is below 1.
    """
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, it must be at least 1")
    return num_steps
