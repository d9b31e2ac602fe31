"""A mixture of Gaussians as a noise-predicting network, with the loops that sample it.

The exact velocity of `GaussianMixtureFlow` is rewritten as noise, clean sample or v, on
variance-exploding or variance-preserving latents. The probability-flow ODE is the same in all of
them, so its exact solution is one fine run of any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erta_framework import Engine, Policy, Profile, Trace
from erta_framework.calibration import calibrate
from erta_framework.metrics import psnr
from erta_framework.plugins import Profiler
from erta_framework.sampling import Request, SamplingLoop, Solver, sample_noise
from erta_framework.sampling.networks import convert_prediction
from erta_framework.sampling.solvers import (
    ComposedSolver,
    Euler,
    Karras,
    Parametrisation,
    VarianceExploding,
    VPSolver,
)
from erta_framework.testing import GaussianMixtureFlow

SHAPE = (3, 4, 4)
SAMPLES = 6
STEPS = 50
SIGMA_MAX = 148.0


class MixtureNoise:
    """The mixture's noise prediction; the timestep is sigma, the ratio of noise and clean part.

    Args:
        preserving: Whether latents are `(clean + sigma * noise) / sqrt(1 + sigma^2)`.
        process: Reads sigma off a timestep.
    """

    def __init__(self, process: Any, preserving: bool) -> None:
        self.process, self.preserving, self.calls = process, preserving, 0
        self.flow = GaussianMixtureFlow(SHAPE)

    def __call__(self, x: Tensor, times: Tensor, cond: Tensor) -> Tensor:
        self.calls += 1
        sigma = self.process.sigma_at(times.double()).reshape(-1, 1, 1, 1)
        z = x.double() * ((1 + sigma**2).sqrt() if self.preserving else 1.0)
        share, mixed = sigma / (1 + sigma), z / (1 + sigma)
        velocity = self.flow.predict(mixed, share, cond)
        return (mixed + (1 - share) * velocity).to(x.dtype)


def make_network(solver: ComposedSolver) -> Any:
    """The mixture as a network that predicts what a solver wants."""
    process, wanted = solver.form.process, solver.form.prediction
    network = MixtureNoise(process, not isinstance(process, VarianceExploding))
    if wanted == "epsilon":
        return network
    return convert_prediction(network, process, given="epsilon", wanted=wanted)


def exploding(prediction: Any = "epsilon", integrator: Any = None) -> ComposedSolver:
    """Variance-exploding latents on a grid of Karras et al. up to 148."""
    return ComposedSolver(
        form=Parametrisation(process=VarianceExploding(), prediction=prediction),
        grid=Karras(sigma_max=SIGMA_MAX, sigma_min=0.01),
        integrator=integrator or Euler(),
    )


def preserving(prediction: Any = "epsilon", **options: Any) -> ComposedSolver:
    """Variance-preserving latents as Stable Diffusion has them."""
    return VPSolver(prediction=prediction, **options).parts


def make_request(solver: Solver, seed: int = 0, copies: int = 1, steps: int = STEPS) -> Request:
    """Samples of the mixture, each with another condition."""
    schedule = solver.schedule(steps)
    noise = sample_noise(SHAPE, [seed + k for k in range(SAMPLES)]).double()
    names = [f"{seed} {k}" for k in range(SAMPLES)]
    flow = GaussianMixtureFlow(SHAPE)
    start = solver.noised(None, noise, schedule.sigmas[0])
    return Request(
        latents=torch.cat([start] * copies),
        cond=torch.cat([0.3 * flow.encode(names).double()] * copies),
        schedule=schedule,
        model=flow.fingerprint(),
    )


def sample(
    solver: ComposedSolver, policies: Sequence[Policy] = (), steps: int = STEPS, seed: int = 100
) -> tuple[Tensor, Trace]:
    """Samples and trace under policies."""
    loop = SamplingLoop(Engine(policies), solver)
    result = loop.run(make_network(solver), make_request(solver, seed, steps=steps))
    return result.sample, result.trace


def measure(solver: ComposedSolver, policies: Sequence[Policy]) -> float:
    """Mean PSNR against the full run, in dB; what is sampled was not calibrated on."""
    full, _ = sample(solver)
    cached, _ = sample(solver, policies)
    return float(psnr(cached, full, data_range=2.0).mean())


def measure_exactly(solver: ComposedSolver, policies: Sequence[Policy] = ()) -> float:
    """Mean PSNR against the solution of the ODE, which 20 times the steps are near to."""
    exact, _ = sample(solver, steps=20 * STEPS)
    cached, _ = sample(solver, policies)
    return float(psnr(cached, exact, data_range=2.0).mean())


def make_profile(solver: ComposedSolver, profiler: Profiler) -> Profile:
    """Calibrate a profiler on samples of their own."""

    def run(current: Profiler) -> Sequence[Profile]:
        request = make_request(solver, copies=current.calibration_copies)
        loop = SamplingLoop(Engine([current]), solver)
        return loop.run(make_network(solver), request).emitted

    return calibrate(profiler, run)
