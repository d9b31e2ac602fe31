"""Solvers of flow matching that a configuration can name: options, and their parts."""

from __future__ import annotations

from dataclasses import dataclass

from erta_framework.sampling.solvers._composed import (
    ComposedSolver,
    IntegratorName,
    SolverRecipe,
    compose,
)
from erta_framework.sampling.solvers._grids import Shifted
from erta_framework.sampling.solvers._processes import Flow
from erta_framework.sampling.solvers._protocol import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEuler(SolverRecipe):
    """Euler steps of the flow-matching ODE `dx/dsigma = v`.

    Latents are x = (1 - sigma) * clean + sigma * noise.

    Attributes:
        shift: Schedule shift `s * u / (1 + (s - 1) * u)` of uniform u; 1 is uniform in sigma.
        time_scale: The network's timestep is `time_scale * sigma`.

    Raises:
        InputError: The shift or the scale is not positive and finite.

    Example:
        >>> FlowEuler(shift=1.0).schedule(2).sigmas
        (1.0, 0.5, 0.0)
    """

    shift: float = 3.0
    time_scale: float = 1000.0

    @property
    def prediction(self) -> Prediction:
        """`"velocity"`."""
        return "velocity"

    def build(self) -> ComposedSolver:
        """Flow, shifted grid, Euler."""
        process = Flow(time_scale=self.time_scale)
        return compose(process, self.prediction, Shifted(shift=self.shift), "euler")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowAdamsBashforth2(SolverRecipe):
    """Second-order Adams-Bashforth steps with variable step size on the flow-matching ODE.

    One network call a step, like Euler; the honest plain baseline at a small number of calls. It
    remembers the last velocity, so the interval cannot be moved under it.

    Attributes:
        shift: As of `FlowEuler`.
        time_scale: As of `FlowEuler`.

    Raises:
        InputError: The shift or the scale is not positive and finite.
    """

    shift: float = 3.0
    time_scale: float = 1000.0

    @property
    def prediction(self) -> Prediction:
        """`"velocity"`."""
        return "velocity"

    def build(self) -> ComposedSolver:
        """Flow, shifted grid, Adams-Bashforth."""
        process = Flow(time_scale=self.time_scale)
        return compose(process, self.prediction, Shifted(shift=self.shift), "ab2")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSolver(SolverRecipe):
    """Flow matching with any integrator, for networks that predict velocity or the clean sample.

    Attributes:
        shift: As of `FlowEuler`.
        time_scale: As of `FlowEuler`.
        prediction: `"velocity"` or `"sample"`.
        integrator: `"euler"`, `"ab2"` (Adams-Bashforth) or `"dpmpp_2m"` (DPM-Solver++ 2M).

    Raises:
        InputError: An option is out of range.
    """

    shift: float = 3.0
    time_scale: float = 1000.0
    prediction: Prediction = "velocity"
    integrator: IntegratorName = "euler"

    def build(self) -> ComposedSolver:
        """Flow, shifted grid, and the integrator."""
        process = Flow(time_scale=self.time_scale)
        return compose(process, self.prediction, Shifted(shift=self.shift), self.integrator)
