"""PromptTea's regression: the output's change from the signal's change and the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.constants import read_published
from erta_policies.shared import (
    DEGREE,
    Signal,
    make_change_kind,
    read_calibrated_range,
    refuse_unsolvable,
    require_finite_fit,
)

KIND = make_change_kind("regression_profiler", by_step=True)
EXPONENTS = (
    (0, 0),
    (1, 0),
    (0, 1),
    (2, 0),
    (0, 2),
    (1, 1),
    (3, 0),
    (0, 3),
    (2, 1),
    (1, 2),
    (4, 0),
    (0, 4),
)
"""Powers of difference and step index in the 12 features, in the published order."""
FEWEST = len(EXPONENTS)
RANK = 1e-12
"""Directions of the scaled normal matrix below this part of the largest are left out."""


@dataclass(frozen=True, slots=True)
class Regression:
    """A regression, and what was published with it.

    Attributes:
        coefficients: Of the 12 features, in the order of `EXPONENTS`.
        intercept: Added to their sum.
        steps: Steps of the schedule that it was fitted to; 0 takes the index as it is.
        signal: Whose change it is a function of.
        threshold: The fixed threshold, if one was published.
        network: Name of the network that it is for; empty for the only one.
        low: Smallest difference it was fitted to, 0 where unknown.
        high: Largest, infinite where unknown.
    """

    coefficients: tuple[float, ...]
    intercept: float
    steps: int
    signal: Signal
    threshold: float | None = None
    network: str = ""
    low: float = 0.0
    high: float = math.inf

    def position(self, index: int, num_steps: int) -> float:
        """The step index in the schedule of the fit: `index * (steps - 1) / (num_steps - 1)`."""
        if self.steps in (0, num_steps) or num_steps < 2:
            return float(index)
        return index * (self.steps - 1) / (num_steps - 1)

    def change(self, difference: float, position: float) -> float:
        """Predicted change of the output; infinite where the difference is not finite."""
        if not math.isfinite(difference):
            return math.inf
        terms = zip(self.coefficients, EXPONENTS, strict=True)
        return self.intercept + sum(c * difference**a * position**b for c, (a, b) in terms)

    def doubts(self, differences: Sequence[float], changes: Sequence[float], steps: int) -> str:
        """Reasons to doubt these predictions, for the trace; empty if there are none."""
        found = ""
        if self.steps not in (0, steps):
            found = f", step index stretched from {steps} steps to {self.steps}"
        if any(not self.low <= d <= self.high for d in differences):
            return f"{found}, outside the calibrated range"
        return f"{found}, regression below 0" if any(c < 0.0 for c in changes) else found


def load_published_regression(model: str, network: str | None) -> Regression:
    """The published regression of a model's network.

    Raises:
        PolicyError: Nothing was published for it, or its networks have one each and none is named.
    """
    found = read_published("prompttea", model)
    networks = {entry["name"]: entry for entry in found["networks"]}
    name = "" if "" in networks else network
    if name not in networks:
        raise PolicyError(
            f"{model!r} has one regression for each of its networks {', '.join(networks)}, "
            f"network={network!r} names none of them; list a rule for each, as PromptTea does"
        )
    entry = networks[name]
    return Regression(
        coefficients=tuple(map(float, entry["coefficients"])),
        intercept=float(entry["intercept"]),
        steps=int(found["steps"]),
        signal=cast(Signal, found["signal"]),
        threshold=float(entry["threshold"]),
        network=network or "",
    )


# --------------------------------------------------------------------------------- fitting
def fit_regression(profile: Profile) -> Regression:
    """Fit the regression of a profile by least squares, on its signal, steps and range.

    The normal equations need the sums of powers at each step only, which merge by adding. Where
    they do not fix every coefficient, as with one grid and a signal of the timestep alone, the
    smallest ones in scaled units are taken.

    Raises:
        ProfileError: There are too few pairs, or their sums cannot be solved.
    """
    powers, products = read_sums(profile)
    pairs = float(powers[:, 0].sum())
    if not pairs > FEWEST:
        raise ProfileError(
            f"{int(pairs)} pairs of steps do not fix a regression with {FEWEST} coefficients; "
            "calibrate with more steps or prompts"
        )
    # differences in units of their root mean square and steps in units of the last one
    unit = math.sqrt(float(powers[:, 2].sum()) / pairs) or 1.0
    last = float(len(powers) - 1)
    matrix, vector = build_normal_equations(powers, products, unit, last)
    with refuse_unsolvable(profile):
        found = torch.linalg.pinv(matrix, rtol=RANK, hermitian=True) @ vector
        scale = torch.tensor([unit**a * last**b for a, b in EXPONENTS], dtype=torch.float64)
    intercept, *others = (found / scale).tolist()
    require_finite_fit(profile, (intercept, *others))
    low, high = read_calibrated_range(profile)
    facts = profile.fingerprint
    return Regression(
        coefficients=(0.0, *others),
        intercept=float(intercept),
        steps=int(facts["num_steps"]),
        signal=cast(Signal, facts["signal"]),
        network=facts.get("for_network", ""),
        low=low,
        high=high,
    )


def read_sums(profile: Profile) -> tuple[Tensor, Tensor]:
    """Powers `[T, 9]` and products `[T, 5]` of a profile, over its branches."""
    statistics = profile.statistics
    return statistics["powers"].sum(dim=0), statistics["products"].sum(dim=0)


def build_normal_equations(
    powers: Tensor, products: Tensor, unit: float, last: float
) -> tuple[Tensor, Tensor]:
    """Matrix `[12, 12]` and right-hand side `[12]` over scaled features, from sums by step.

    Args:
        powers: Sums of the difference's powers 0 to 8 at each step, `[T, 9]`.
        products: Sums of the output change times powers 0 to 4, `[T, 5]`.
        unit: Unit of the differences.
        last: Unit of the steps.
    """
    steps = torch.arange(len(powers), dtype=torch.float64) / last
    scaled = powers / unit ** torch.arange(2 * DEGREE + 1, dtype=torch.float64)
    weighted = products / unit ** torch.arange(DEGREE + 1, dtype=torch.float64)
    matrix = torch.stack(
        [
            torch.stack([(scaled[:, a + c] * steps ** (b + d)).sum() for c, d in EXPONENTS])
            for a, b in EXPONENTS
        ]
    )
    return matrix, torch.stack([(weighted[:, a] * steps**b).sum() for a, b in EXPONENTS])


def explain_variance(profile: Profile) -> float:
    """R² of the fit: the part of the output change's variance that the regression explains."""
    found = fit_regression(profile)
    powers, products = read_sums(profile)
    matrix, vector = build_normal_equations(powers, products, 1.0, 1.0)
    weights = torch.tensor([found.intercept, *found.coefficients[1:]], dtype=torch.float64)
    squares = profile.statistics["squares"].sum()
    missed = squares - 2 * weights @ vector + weights @ matrix @ weights
    spread = squares - products[:, 0].sum() ** 2 / powers[:, 0].sum()
    return float(1.0 - missed / spread) if float(spread) > 0.0 else math.nan


def is_network(network: str | None, called: str) -> bool:
    """Whether a call is one of this network, which is named anew when its weights change.

    Example:
        >>> is_network("transformer", "transformer#2"), is_network("transformer", "transformer_2")
        (True, False)
    """
    return network is None or called.partition("#")[0] == network
