"""`FreqCa`: a schedule, a Hermite forecast, and the band that it is used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_policies.at import At
from erta_policies.forecast import Forecaster
from erta_policies.freqca._bands import Transform
from erta_policies.freqca._forecast import BandCorrection, BandForecast
from erta_policies.shared import BudgetedRecipe, PlanBudget
from erta_policies.taylorseer import RefreshInterval

STACK = Select(kind=("block",), span=True)
DEFAULT_INTERVAL = 6
SCALE = 0.71


class FreqCa(BudgetedRecipe):
    """FreqCa (NeurIPS 2026), as a recipe: low frequencies are reused, high ones are forecast.

    The published method works on what comes out of the last block: level `blocks`, an `At` on the
    span of all blocks, whose final norm and projection run with the current timestep. There every
    stream of the blocks is split, along its tokens. Level `output` works on the output of the whole
    network, split over its grid.

    Source: FreqCa (NeurIPS 2026), as in its code (Tammytcl/FreqCa at e0a4bf3).

    Attributes:
        interval: N, a computed step and N - 1 forecasts; 6 unless a budget is given. The authors
            have 6, and 9 or 10 for most speed.
        budget: Instead of `interval`: `calls` or `speedup`; at level `blocks`, where the network is
            called at every step, `work`.
        level: `output` or `blocks`.
        first: Steps at the start that are computed.
        order: Highest difference in the high band; the low band is reused.
        transform: `fft` along the tokens, as published for Qwen-Image; `dct` over height and width,
            as for FLUX, at level `output`.
        cutoff: Part of the highest frequency up to which a frequency is low.

    Raises:
        PolicyError: A setting is out of range, or not of the level.

    Example:
        >>> [part.name for part in FreqCa(interval=6).parts()]
        ['refresh_interval', 'band_forecast', 'forecaster']
        >>> FreqCa(interval=5).plan(50).calls
        12
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    interval: int | None = None
    level: Literal["output", "blocks"] = "output"
    first: int = 3
    order: int = 2
    transform: Transform = "fft"
    cutoff: float = 0.1

    def __post_init__(self) -> None:
        self._settle_budget()
        budget = PlanBudget.of(self.budget)
        if self.level not in ("output", "blocks"):
            raise PolicyError(f"FreqCa has no level {self.level!r}; it is 'output' or 'blocks'")
        if self.level == "blocks" and self.transform != "fft":
            raise PolicyError(
                f"FreqCa got transform={self.transform!r} at level 'blocks', where tokens have no "
                "height and width; give transform='fft', or level='output'"
            )
        if self.level == "blocks" and budget is not None and budget.work is None:
            raise PolicyError(
                f"FreqCa got {budget} at level 'blocks', where the network is called at every "
                "step; give interval, or a budget of work"
            )
        self.parts()

    def parts(self) -> Sequence[Policy]:
        interval = DEFAULT_INTERVAL if self.budget is None else None
        when = RefreshInterval(
            interval=self.interval or interval, budget=self.budget, first=self.first
        )
        what = Forecaster(
            basis="hermite",
            order=self.order,
            over="index",
            scale=SCALE,
            since=max(0, self.first - 2),  # differences are formed from the last first step on
        )
        if self.level == "output":
            return (when, BandForecast(transform=self.transform, cutoff=self.cutoff), what)
        then = BandCorrection(cutoff=self.cutoff)
        return (At(sites=STACK, when=when, what=what, then=then),)
