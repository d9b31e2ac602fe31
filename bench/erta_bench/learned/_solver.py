"""`LearnedSolver`: a multistep solver whose grid and weights are numbers that were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling import Schedule
from erta_framework.sampling.solvers import Parametrisation, Prediction
from erta_framework.session import Interval

Feature = Literal["slope", "clean"]
"""What a solver combines: the slope of the line that stretched latents move on, or the predicted
clean sample."""
History = tuple[Tensor, tuple[Tensor, ...]]
"""The latents that a run began with, and the features of the steps so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedSolver:
    """Takes every step by a weighted sum of the first latents, the newest, and all outputs so far.

    With f_j what the network said at step j, the latents after step i are

    `x_(i+1) = a_i x_0 + b_i x_i + sum over j <= i of c_ij f_j`.

    Such solvers are Bespoke Non-Stationary solvers (Shaul et al. 2024, arXiv 2403.01329) and, as
    corrections of a plain solver's weights, Generalized Solvers (GAS, ICLR 2026, arXiv
    2510.17699). This is our own implementation of the family, not the authors' code.

    Attributes:
        form: What the network predicts, of which process.
        feature: What is combined.
        sigmas: Where the steps lie, N + 1; the last is where sampling ends.
        times: The network's timestep at each.
        rows: Weights of each step i: of x_0, of x_i, and of f_0 to f_i.

    Raises:
        InputError: The numbers do not fit together.

    Example:
        >>> from erta_framework.sampling.solvers import Flow
        >>> form = Parametrisation(process=Flow(), prediction="velocity")
        >>> euler = LearnedSolver(
        ...     form=form, feature="slope", sigmas=(1.0, 0.0), times=(1000.0, 0.0),
        ...     rows=((0.0, 1.0, -1.0),),
        ... )
        >>> euler.schedule(1).sigmas
        (1.0, 0.0)
    """

    form: Parametrisation
    feature: Feature
    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.rows]
        number = len(lengths)
        if lengths != [index + 3 for index in range(number)] or not (
            len(self.sigmas) == len(self.times) == number + 1
        ):
            raise InputError(
                f"{len(self.sigmas)} sigmas, {len(self.times)} times and rows of {lengths} weights "
                "make no solver; step i has i + 3 weights, and N steps have N + 1 sigmas and times"
            )

    @property
    def capabilities(self) -> frozenset[str]:
        """The prediction and traits of the process; a step needs what came before."""
        return frozenset({self.prediction}) | self.form.process.traits

    @property
    def prediction(self) -> Prediction:
        """What the network must predict."""
        return self.form.prediction

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """Its own grid.

        Raises:
            InputError: Another number of steps, or another grid.
        """
        if num_steps != len(self.rows) or sigmas is not None:
            raise InputError(
                f"this solver was trained for {len(self.rows)} steps on a grid of its own, "
                f"{num_steps} steps {'on given sigmas ' if sigmas is not None else ''}were asked "
                "for; train one for them"
            )
        return Schedule(self.sigmas, self.times)

    def time_of(self, sigma: float) -> float:
        """The network's timestep at `sigma`."""
        return self.form.process.time_of(sigma)

    def scales(self, sigma: float) -> tuple[float, float]:
        """`(alpha, level)` of `x = alpha * clean + level * noise` at `sigma`."""
        return self.form.process.scales(sigma)

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Where sampling begins; a clean sample cannot be started from."""
        if clean is not None:
            raise InputError("a learned solver was trained for whole runs from noise, without init")
        return self.form.process.noised(None, noise, sigma)

    def step(
        self, x: Tensor, output: Tensor, interval: Interval, state: History | None
    ) -> tuple[Tensor, History]:
        """The weighted sum of the step.

        Raises:
            InputError: The run did not start at step 0.
        """
        first, features = (x, ()) if state is None else state
        if len(features) != interval.index:
            raise InputError(
                f"step {interval.index} with {len(features)} steps before it: a learned solver was "
                "trained for whole runs; start at step 0"
            )
        features = (*features, find_feature(self.form, self.feature, x, output, interval.start))
        return combine(self.rows[interval.index], first, x, features), (first, features)


def find_feature(
    form: Parametrisation, feature: Feature, x: Tensor, output: Tensor, sigma: float
) -> Tensor:
    """The slope or the clean sample that the output stands for, `[B, C, ...]`."""
    if feature == "slope":
        return form.slope(x, output, sigma)
    return form.clean(x, output, sigma)


def combine(
    row: Sequence[float] | Tensor, first: Tensor, x: Tensor, features: Sequence[Tensor]
) -> Tensor:
    """Latents after a step, `[B, C, ...]`.

    Args:
        row: Weights of `first`, of `x` and of each feature.
        first: Latents that the run began with.
        x: Latents before the step.
        features: What the network said at each step so far.

    Example:
        >>> one = torch.ones(1)
        >>> combine((0.0, 1.0, 2.0), one, one, [3 * one])
        tensor([7.])
    """
    moved = row[0] * first + row[1] * x
    for weight, feature in zip(row[2:], features, strict=True):
        moved = moved + weight * feature
    return moved
