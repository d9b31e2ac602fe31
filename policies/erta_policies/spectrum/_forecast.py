"""`ChebyshevForecast`: a ridge fit of Chebyshev polynomials to all that was computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from erta_framework.errors import PolicyError
from erta_policies.forecast import LinearForecast, newton

Matrix = NDArray[np.float64]


class ChebyshevForecast(LinearForecast):
    """Continues the kept evaluations by a ridge fit of Chebyshev polynomials.

    With the design X `[n, degree + 1]` of the polynomials T_0 .. T_degree at the n kept places, and
    x those at the place that is wanted, the fit gives `x (X'X + ridge I)^-1 X' F`. That is a
    weighted sum of the evaluations F, and its weights depend on the places alone, so nothing is
    fitted to tensors. The axis `[0, span]` is mapped to `[-1, 1]` and does not move with the
    window. The fit is mixed with a line through the two newest evaluations.

    The weights of the fit do not add up to 1, as the ridge pulls towards 0: a constant comes out
    smaller, by our count up to a few percent. `free_mean` leaves the mean out of the ridge.

    Source: Spectrum, arXiv 2603.01623, as in its code (hanjq17/Spectrum at f7b7841,
    `utils/basis_utils.py`), which rounds the fit to bfloat16 and keeps every computed evaluation.

    Attributes:
        degree: Highest polynomial.
        ridge: lambda.
        blend: w, the part of the fit; 1 is the paper's forecast, from 0.5 the authors' advice. 0 is
            the line.
        window: How many evaluations are kept.
        span: Length of the axis; 50 steps in the code, whatever the number of steps.
        free_mean: Whether the ridge leaves T_0 out, so that constants are continued exactly; ours.
        over: What the axis is of: step indices as published, or sigma, with a `span` of its own.
        what: Which quantity is continued, as in `Forecaster`.
        since: First step whose evaluations are used, as there.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> forecast = ChebyshevForecast(blend=0.0)
        >>> forecast.weights([2.0, 1.0], 4.0, 5.0)
        (3.0, -2.0)
    """

    over: Literal["sigma", "index"] = "index"
    degree: int = 4
    ridge: float = 0.1
    blend: float = 0.5
    window: int = 10
    span: float = 50.0
    free_mean: bool = False

    def __post_init__(self) -> None:
        if self.degree < 0 or self.window < 2 or not self.span > 0.0:
            raise PolicyError(
                f"ChebyshevForecast has degree {self.degree}, window {self.window} and span "
                f"{self.span}; they must be at least 0, at least 2, and above 0"
            )
        if not self.ridge > 0.0 or not 0.0 <= self.blend <= 1.0:
            raise PolicyError(
                f"ChebyshevForecast has ridge {self.ridge} and blend {self.blend}; the ridge must "
                "be above 0, and the blend within 0 and 1"
            )

    @property
    def evaluations(self) -> int:
        return self.window

    def weights(self, nodes: Sequence[float], start: float, end: float) -> tuple[float, ...]:
        line = (*newton(nodes[:2], start, end), *(0.0,) * (len(nodes) - 2))
        if self.blend == 0.0:
            return line[: len(nodes)]
        fit = fit_chebyshev(tuple(nodes), start, self.degree, self.ridge, self.span, self.free_mean)
        return tuple(
            self.blend * f + (1.0 - self.blend) * g for f, g in zip(fit, line, strict=True)
        )


@lru_cache(maxsize=256)
def fit_chebyshev(
    nodes: tuple[float, ...], at: float, degree: int, ridge: float, span: float, free_mean: bool
) -> tuple[float, ...]:
    """Weights of the evaluations in the ridge fit, in the order of the nodes.

    Args:
        nodes: Where they were made.
        at: Where the fit is wanted.
        degree: Highest polynomial.
        ridge: What is added to the diagonal.
        span: Length of the axis.
        free_mean: Whether T_0 is left out of the ridge.
    """
    design = spread_basis(nodes, degree, span)
    penalty = ridge * np.eye(degree + 1)
    if free_mean:
        penalty[0, 0] = 0.0
    wanted = spread_basis((at,), degree, span)
    found: Matrix = wanted @ np.linalg.solve(design.T @ design + penalty, design.T)
    return tuple(float(weight) for weight in found[0])


def spread_basis(places: Sequence[float], degree: int, span: float) -> Matrix:
    """T_0 to T_degree at each place of `[0, span]`, `[n, degree + 1]`.

    Example:
        >>> spread_basis((0.0, 1.0), 2, 2.0).tolist()
        [[1.0, -1.0, 1.0], [1.0, 0.0, -1.0]]
    """
    axis = 2.0 * np.asarray(places, dtype=np.float64) / span - 1.0
    return np.polynomial.chebyshev.chebvander(axis, degree).astype(np.float64)
