"""Every solver of parts, and Gaussian data, whose denoiser and exact flow have a closed form.

A test with the argument `any_solver` runs with every combination of recipe, prediction and
integrator; one with the argument `recipe` with every recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_framework.sampling.solvers import (
    ContinuousVPSolver,
    EDMSolver,
    FlowSolver,
    Parametrisation,
    VESolver,
    VPSolver,
)

RECIPES: dict[type[Any], tuple[str, ...]] = {
    FlowSolver: ("velocity", "sample"),
    VPSolver: ("epsilon", "sample", "v_prediction"),
    ContinuousVPSolver: ("epsilon", "sample", "v_prediction"),
    VESolver: ("epsilon", "sample"),
    EDMSolver: ("sample", "epsilon"),
}
INTEGRATORS = ("euler", "ab2", "dpmpp_2m")
SOLVERS = [
    recipe(prediction=prediction, integrator=integrator)
    for recipe, predictions in RECIPES.items()
    for prediction in predictions
    for integrator in INTEGRATORS
]


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2) in every element; predicts in a parametrisation."""

    form: Parametrisation
    mean: float = 0.3
    std: float = 0.5

    def predict(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        alpha, level = self.form.process.scales(sigma)
        variance = alpha**2 * self.std**2 + level**2
        clean = self.mean + alpha * self.std**2 / variance * (x - alpha * self.mean)
        return self.form.predict(x, clean, (x - alpha * clean) / level, sigma)

    def __call__(self, x: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        times = times.to(torch.promote_types(x.dtype, torch.float32))
        sigma = self.form.process.sigma_at(times).reshape(-1, *[1] * (x.ndim - 1))
        return self.predict(x, sigma)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the exact probability flow from `x` at sigma `start` passes `end`."""
        (a, n), (b, m) = map(self.form.process.scales, (start, end))
        growth = math.sqrt((b**2 * self.std**2 + m**2) / (a**2 * self.std**2 + n**2))
        return b * self.mean + growth * (x - a * self.mean)


def start_of(solver: Any, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Latents where sampling begins, `[2, 1, 4]`, at regular places."""
    noise = torch.linspace(-2.0, 2.0, 8, dtype=dtype).reshape(2, 1, 4)
    return solver.noised(None, noise, sigma)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_solver" in metafunc.fixturenames:
        metafunc.parametrize("any_solver", SOLVERS, ids=repr)
    if "recipe" in metafunc.fixturenames and "prediction" not in metafunc.fixturenames:
        metafunc.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)


@pytest.fixture
def gaussian() -> type[Gaussian]:
    return Gaussian


@pytest.fixture
def predictions() -> dict[type[Any], tuple[str, ...]]:
    return RECIPES


@pytest.fixture
def begin() -> Any:
    return start_of
