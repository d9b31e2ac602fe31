"""`Spectrum`: a growing window and a Chebyshev forecast, on whole outputs or the block stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_policies.at import At
from erta_policies.shared import BudgetedRecipe, PlanBudget
from erta_policies.spectrum._forecast import ChebyshevForecast
from erta_policies.spectrum._schedule import GrowingWindow

STACK = Select(kind=("block",), span=True)


class Spectrum(BudgetedRecipe):
    """Spectrum (arXiv 2603.01623), as a recipe: `GrowingWindow` + `ChebyshevForecast`.

    The published method forecasts what comes out of the last block; the final norm and projection
    run with the current timestep. That is level `blocks`, an `At` of the two on the span of all
    blocks. Level `output` forecasts the output of the whole network.

    Attributes:
        growth: alpha; 0.75 unless a budget is given. By our count of the released rule, of 50 steps
            0.75 computes 14, 1.0 13, 1.5 12 and 3.0 10.
        budget: Instead of `growth`: `calls` or `speedup`; at level `blocks`, where the network is
            called at every step, `work`.
        level: `output` or `blocks`.
        window: N, the first window.
        first: Steps at the start that are computed.
        degree: Highest polynomial.
        ridge: lambda.
        blend: w, the part of the fit; the rest is a line through the two newest.
        fitted: How many outputs are kept and fitted; the released code keeps all, the paper 10.
        span: Length of the axis in steps; 50 in the released code.
        free_mean: Whether the ridge leaves the mean alone; ours.

    Raises:
        PolicyError: A setting is out of range, or the budget is not of the level.

    Example:
        >>> [part.name for part in Spectrum(growth=1.5).parts()]
        ['growing_window', 'chebyshev_forecast']
        >>> [part.name for part in Spectrum(level="blocks").parts()]
        ['at']
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("growth",)
    exact: ClassVar[bool] = False

    growth: float | None = None
    level: Literal["output", "blocks"] = "output"
    window: float = 2.0
    first: int = 5
    degree: int = 4
    ridge: float = 0.1
    blend: float = 0.5
    fitted: int = 10
    span: float = 50.0
    free_mean: bool = False

    def __post_init__(self) -> None:
        self._settle_budget()
        budget = PlanBudget.of(self.budget)
        if self.level not in ("output", "blocks"):
            raise PolicyError(f"Spectrum has no level {self.level!r}; it is 'output' or 'blocks'")
        if self.level == "blocks" and budget is not None and budget.work is None:
            raise PolicyError(
                f"Spectrum got {budget} at level 'blocks', where the network is called at every "
                "step; give growth, or a budget of work"
            )
        self.parts()

    def parts(self) -> Sequence[Policy]:
        when = GrowingWindow(
            growth=self.growth, budget=self.budget, window=self.window, first=self.first
        )
        what = ChebyshevForecast(
            over="index",
            degree=self.degree,
            ridge=self.ridge,
            blend=self.blend,
            window=self.fitted,
            span=self.span,
            free_mean=self.free_mean,
        )
        return (when, what) if self.level == "output" else (At(sites=STACK, when=when, what=what),)
