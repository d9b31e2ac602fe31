"""A solver of three parts, and recipes that are named for what people know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import Tensor

from erta_framework.errors import InputError
from erta_framework.sampling.solvers._grids import Grid
from erta_framework.sampling.solvers._integrators import (
    AdamsBashforth2,
    DPMSolverPP2M,
    Euler,
    Integrator,
)
from erta_framework.sampling.solvers._parametrisation import Parametrisation
from erta_framework.sampling.solvers._processes import Process
from erta_framework.sampling.solvers._protocol import (
    Prediction,
    Schedule,
    SolverState,
    as_sigmas,
)
from erta_framework.session import Interval

IntegratorName = Literal["euler", "ab2", "dpmpp_2m"]
INTEGRATORS: Mapping[IntegratorName, Integrator] = {
    "euler": Euler(),
    "ab2": AdamsBashforth2(),
    "dpmpp_2m": DPMSolverPP2M(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedSolver:
    """A solver of a parametrisation, a sigma grid and an integrator, in any combination.

    Attributes:
        form: How latents, clean part, noise and the network's output relate.
        grid: Where the steps lie.
        integrator: How a step is taken.

    Example:
        >>> solver = ComposedSolver(
        ...     form=Parametrisation(process=VarianceExploding(), prediction="sample"),
        ...     grid=Geometric(sigma_max=20.0, sigma_min=0.05),
        ...     integrator=DPMSolverPP2M(),
        ... )
        >>> sorted(solver.capabilities)
        ['sample', 'variance_exploding']
    """

    form: Parametrisation
    grid: Grid
    integrator: Integrator

    @property
    def capabilities(self) -> frozenset[str]:
        """The prediction, traits of the process, and `"first_order"` for one-step integrators."""
        order = frozenset({"first_order"} if self.integrator.is_one_step else ())
        return order | {self.form.prediction} | self.form.process.traits

    @property
    def prediction(self) -> Prediction:
        """What the network must predict."""
        return self.form.prediction

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """The grid, or the user's sigmas, with the network's timesteps.

        Raises:
            InputError: There is no such grid.
        """
        values = self.grid.sigmas(num_steps) if sigmas is None else as_sigmas(sigmas)
        return Schedule(values, tuple(self.time_of(sigma) for sigma in values))

    def time_of(self, sigma: float) -> float:
        """The network's timestep at `sigma`."""
        return self.form.process.time_of(sigma)

    def scales(self, sigma: float) -> tuple[float, float]:
        """`(alpha, level)` of `x = alpha * clean + level * noise` at `sigma`."""
        return self.form.process.scales(sigma)

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """Latents at `sigma`: of a clean sample (img2img), or where sampling begins."""
        return self.form.process.noised(clean, noise, sigma)

    def step(
        self, x: Tensor, output: Tensor, interval: Interval, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """One step of the integrator."""
        return self.integrator.step(self.form, x, output, interval, state)


class SolverRecipe(ABC):
    """Base of solvers that are a few options and the parts that these stand for.

    A recipe is a frozen, hashable dataclass with a `prediction` (a field or a property) and one
    method, `build`. Its fields are the options.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        """Build the parts once, so that options out of range are refused here."""
        _build(self)

    @abstractmethod
    def build(self) -> ComposedSolver:
        """The parts; called once for equal options.

        Raises:
            InputError: An option is out of range.
        """

    @property
    def parts(self) -> ComposedSolver:
        """The solver of parts that this recipe stands for."""
        return _build(self)

    @property
    def capabilities(self) -> frozenset[str]:
        """As `ComposedSolver.capabilities`."""
        return self.parts.capabilities

    def schedule(self, num_steps: int, sigmas: Sequence[float] | None = None) -> Schedule:
        """As `ComposedSolver.schedule`."""
        return self.parts.schedule(num_steps, sigmas)

    def time_of(self, sigma: float) -> float:
        """As `ComposedSolver.time_of`."""
        return self.parts.time_of(sigma)

    def scales(self, sigma: float) -> tuple[float, float]:
        """As `ComposedSolver.scales`."""
        return self.parts.scales(sigma)

    def noised(self, clean: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """As `ComposedSolver.noised`."""
        return self.parts.noised(clean, noise, sigma)

    def step(
        self, x: Tensor, output: Tensor, interval: Interval, state: SolverState
    ) -> tuple[Tensor, SolverState]:
        """As `ComposedSolver.step`."""
        return self.parts.step(x, output, interval, state)


@lru_cache(maxsize=64)
def _build(recipe: SolverRecipe) -> ComposedSolver:
    return recipe.build()


def compose(
    process: Process, prediction: Prediction, grid: Grid, integrator: IntegratorName
) -> ComposedSolver:
    """The solver of these parts, with the integrator by name.

    Raises:
        InputError: The integrator is unknown, or networks of the process do not predict that.
    """
    if integrator not in INTEGRATORS:
        raise InputError(
            f"integrator is {integrator!r}, it must be one of {', '.join(INTEGRATORS)}"
        )
    form = Parametrisation(process=process, prediction=prediction)
    return ComposedSolver(form=form, grid=grid, integrator=INTEGRATORS[integrator])


def suggest_solver(prediction: str) -> str:
    """A solver that integrates this prediction, as a person would write it, for messages."""
    if prediction in ("sample", "v_prediction"):
        return f"VPSolver(prediction={prediction!r})"
    return "DDIM()" if prediction == "epsilon" else "FlowEuler()"
