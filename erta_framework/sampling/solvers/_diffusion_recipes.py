"""Solvers of diffusion models that a configuration can name: options, and their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from erta_framework.errors import InputError
from erta_framework.sampling.solvers._composed import (
    ComposedSolver,
    IntegratorName,
    SolverRecipe,
    compose,
)
from erta_framework.sampling.solvers._grids import Geometric, Grid, Karras, Trailing, UniformTime
from erta_framework.sampling.solvers._processes import VarianceExploding
from erta_framework.sampling.solvers._protocol import Prediction
from erta_framework.sampling.solvers._variance_preserving import Betas, ContinuousVP, DiscreteVP


@dataclass(frozen=True, slots=True, kw_only=True)
class DDIM(SolverRecipe):
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with eta 0) for networks that predict noise.

    Latents are variance preserving, x = sqrt(abar) * clean + sqrt(1 - abar) * noise, and sigma is
    sqrt((1 - abar) / abar). The defaults are the scaled-linear betas of Stable Diffusion, with
    trailing steps. `VPSolver` has other betas, grids, predictions and integrators.

    Attributes:
        train_steps: Number of training timesteps.
        beta_start: First beta.
        beta_end: Last beta.

    Raises:
        InputError: A number is out of range.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    @property
    def prediction(self) -> Prediction:
        """`"epsilon"`."""
        return "epsilon"

    @property
    def process(self) -> DiscreteVP:
        """The noise process."""
        return DiscreteVP(
            train_steps=self.train_steps, beta_start=self.beta_start, beta_end=self.beta_end
        )

    @property
    def training_sigmas(self) -> tuple[float, ...]:
        """Sigma at every training timestep, rising."""
        return self.process.training_sigmas

    def build(self) -> ComposedSolver:
        """Discrete VP, trailing steps, Euler in the ratio of noise and clean part."""
        return compose(self.process, self.prediction, Trailing(process=self.process), "euler")


@dataclass(frozen=True, slots=True, kw_only=True)
class VPSolver(SolverRecipe):
    """Variance-preserving networks trained at discrete timesteps, such as Stable Diffusion.

    Attributes:
        train_steps: Number of training timesteps.
        beta_start: First beta; not used by `"cosine"`.
        beta_end: Last beta, likewise.
        betas: `"scaled_linear"`, `"linear"` or `"cosine"`.
        grid: `"trailing"` timesteps, or `"karras"` between the first and last training sigma.
        rho: Of the Karras grid.
        prediction: `"epsilon"`, `"sample"` or `"v_prediction"`.
        integrator: `"euler"` (DDIM), `"ab2"` (Adams-Bashforth on the noise) or `"dpmpp_2m"`.

    Raises:
        InputError: An option is out of range.

    Example:
        >>> VPSolver(prediction="v_prediction", integrator="dpmpp_2m").schedule(4).times
        (999.0, 749.0, 499.0, 249.0, 0.0)
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    betas: Betas = "scaled_linear"
    grid: Literal["trailing", "karras"] = "trailing"
    rho: float = 7.0
    prediction: Prediction = "epsilon"
    integrator: IntegratorName = "euler"

    def build(self) -> ComposedSolver:
        """Discrete VP with the grid and the integrator."""
        process = DiscreteVP(
            train_steps=self.train_steps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            betas=self.betas,
        )
        grid: Grid = Trailing(process=process)
        if self.grid == "karras":
            low, *_, high = process.training_sigmas
            grid = Karras(sigma_max=high, sigma_min=low, rho=self.rho)
        elif self.grid != "trailing":
            raise InputError(f"grid is {self.grid!r}, it must be trailing or karras")
        return compose(process, self.prediction, grid, self.integrator)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousVPSolver(SolverRecipe):
    """Variance-preserving networks in continuous time: the VP SDE, as its probability-flow ODE.

    Attributes:
        beta_min: Beta at t = 0.
        beta_max: Beta at t = 1.
        time_scale: The network's timestep is `time_scale * t`; 999 for the networks of score_sde.
        last_time: Last t at which the network is evaluated.
        prediction: `"epsilon"`, `"sample"` or `"v_prediction"`.
        integrator: `"euler"`, `"ab2"` or `"dpmpp_2m"`.

    Raises:
        InputError: An option is out of range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_scale: float = 1.0
    last_time: float = 1e-3
    prediction: Prediction = "epsilon"
    integrator: IntegratorName = "euler"

    def build(self) -> ComposedSolver:
        """Continuous VP, uniform time, and the integrator."""
        process = ContinuousVP(
            beta_min=self.beta_min, beta_max=self.beta_max, time_scale=self.time_scale
        )
        grid = UniformTime(process=process, last_time=self.last_time)
        return compose(process, self.prediction, grid, self.integrator)


@dataclass(frozen=True, slots=True, kw_only=True)
class VESolver(SolverRecipe):
    """Variance-exploding networks on a geometric grid: the VE SDE, as its probability-flow ODE.

    The network's timestep is sigma itself.

    Attributes:
        sigma_max: First sigma.
        sigma_min: Last sigma above 0.
        prediction: `"epsilon"` or `"sample"`.
        integrator: `"euler"`, `"ab2"` or `"dpmpp_2m"`.

    Raises:
        InputError: An option is out of range.
    """

    sigma_max: float = 50.0
    sigma_min: float = 0.01
    prediction: Prediction = "epsilon"
    integrator: IntegratorName = "euler"

    def build(self) -> ComposedSolver:
        """VE, geometric grid, and the integrator."""
        grid = Geometric(sigma_max=self.sigma_max, sigma_min=self.sigma_min)
        return compose(VarianceExploding(), self.prediction, grid, self.integrator)


@dataclass(frozen=True, slots=True, kw_only=True)
class EDMSolver(SolverRecipe):
    """Denoisers of EDM (arXiv 2206.00364): variance exploding on the grid of Karras et al.

    The network's timestep is sigma itself, and it predicts the clean sample from latents that are
    not scaled, as the preconditioned networks of EDM do. For the network inside the preconditioning
    see `erta_framework.sampling.networks.precondition_edm`.

    Attributes:
        sigma_max: First sigma.
        sigma_min: Last sigma above 0.
        rho: Of the grid.
        prediction: `"sample"` or `"epsilon"`.
        integrator: `"euler"`, `"ab2"` or `"dpmpp_2m"`.

    Raises:
        InputError: An option is out of range.
    """

    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    prediction: Prediction = "sample"
    integrator: IntegratorName = "euler"

    def build(self) -> ComposedSolver:
        """VE, Karras grid, and the integrator."""
        grid = Karras(sigma_max=self.sigma_max, sigma_min=self.sigma_min, rho=self.rho)
        return compose(VarianceExploding(), self.prediction, grid, self.integrator)
