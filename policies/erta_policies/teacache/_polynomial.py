"""TeaCache's polynomial: its value, and its fit from sums that merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from erta_framework import Profile
from erta_framework.errors import ProfileError
from erta_policies.shared import (
    DEGREE,
    make_change_kind,
    refuse_unsolvable,
    require_finite_fit,
)

KIND = make_change_kind("tea_cache_profiler", by_step=False)


def evaluate_polynomial(coefficients: Sequence[float], difference: float) -> float:
    """The polynomial at a difference; the coefficient of the highest power comes first.

    Example:
        >>> evaluate_polynomial([1.0, 0.0, 2.0], 3.0)
        11.0
    """
    total = 0.0
    for coefficient in coefficients:
        total = total * difference + coefficient
    return total


def fit_polynomial(profile: Profile) -> tuple[float, ...]:
    """Fit the polynomial of a profile; coefficients as of `numpy.polyfit`, highest power first.

    The normal equations need only sums of powers and products, which merge by adding.

    Raises:
        ProfileError: The differences hardly vary, or there are too few.
    """
    powers, products = (profile.statistics[name].sum(dim=0) for name in ("powers", "products"))
    if not float(powers[0]) > DEGREE:
        raise ProfileError(
            f"{int(powers[0])} pairs of steps do not fix a polynomial of degree {DEGREE}; "
            "calibrate with more steps or prompts"
        )
    # differences in units of their root mean square, or the powers would differ by many digits
    unit = math.sqrt(float(powers[2] / powers[0])) or 1.0
    scale = unit ** -torch.arange(2 * DEGREE + 1, dtype=torch.float64)
    scaled = powers * scale
    matrix = torch.stack([scaled[k : k + DEGREE + 1] for k in range(DEGREE + 1)])
    with refuse_unsolvable(profile):
        condition = float(torch.linalg.cond(matrix))
    if not condition < 1e13:
        raise ProfileError(
            "the differences of this profile hardly vary, so they fix no polynomial of degree "
            f"{DEGREE}; calibrate with more steps, or give coefficients=..."
        )
    rising = torch.linalg.solve(matrix, products * scale[: DEGREE + 1])
    found = (rising * scale[: DEGREE + 1]).flip(0).tolist()
    require_finite_fit(profile, found)
    return tuple(float(number) for number in found)


def explain_variance(profile: Profile) -> float:
    """R² of the fit: the part of the output change's variance that the polynomial explains."""
    rising = torch.tensor(fit_polynomial(profile)[::-1], dtype=torch.float64)
    powers, products, squares = (
        profile.statistics[name].sum(dim=0) for name in ("powers", "products", "squares")
    )
    matrix = torch.stack([powers[k : k + DEGREE + 1] for k in range(DEGREE + 1)])
    missed = squares - 2 * rising @ products + rising @ matrix @ rising
    spread = squares - products[0] ** 2 / powers[0]
    return float(1.0 - missed / spread) if float(spread) > 0.0 else math.nan
