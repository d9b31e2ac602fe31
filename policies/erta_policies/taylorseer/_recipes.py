"""`TaylorSeer`, `HiCache` and `FORA`, on the output of the network or on those of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from erta_framework import Policy
from erta_policies.forecast import Forecaster
from erta_policies.taylorseer._levels import LevelRecipe

Schedule = Literal["release", "diffusers", "cache-dit"]
Over = Literal["index", "sigma"]


def oldest_step(schedule: Schedule, first: int) -> int:
    """The oldest step that a forecast may use.

    The release forms its first difference at step `first - 1`, with the step before it; diffusers
    and this framework use every computed step.
    """
    return max(0, first - 2) if schedule == "release" else 0


class TaylorSeer(LevelRecipe):
    """TaylorSeer's schedule and forecast (arXiv 2503.06923), as a recipe.

    At level `output` it stands for `RefreshInterval` + `Forecaster`: the lite variant, which
    forecasts one output of the whole network. At level `modules` it is the published method, which
    forecasts the output of each attention and MLP module: an `At` of the same two. Published
    figures are of that level.

    Attributes:
        interval: n, a computed step and n - 1 forecasts; 5 unless a budget is given. The release
            has 6 for FLUX, 5 for HunyuanVideo and Wan 2.1, 4 for HiDream.
        budget: Instead of `interval`: `calls` or `speedup`; the shortest interval that keeps it.
            At level `output` only.
        level: `output` keeps one output of the network; `modules` one of each module, as published.
        sites: At level `modules`, which; every attention, cross-attention and MLP unless given.
        order: Highest difference that is used; lower while there are too few computed steps.
        first: Steps at the start that are computed: 3 for FLUX, 1 for the video models.
        basis: `taylor` as published; the others are those of `Forecaster`.
        over: What the differences are over: step indices as published, or sigma, which is ours.
        schedule: Whose count of the interval; see `RefreshInterval`.

    Raises:
        PolicyError: A setting is out of range or not of the level, or the basis cannot count in
            indices.

    Example:
        >>> [part.name for part in TaylorSeer(interval=6).parts()]
        ['refresh_interval', 'forecaster']
        >>> [part.name for part in TaylorSeer(interval=6, level="modules").parts()]
        ['at']
    """

    order: int = 1
    first: int = 3
    basis: Literal["taylor", "newton", "adams"] = "taylor"
    over: Over = "index"
    schedule: Schedule = "release"

    def __post_init__(self) -> None:
        self._settle()

    def parts(self) -> Sequence[Policy]:
        return self._place(
            self._refresh(5, first=self.first, counting=self.schedule),
            Forecaster(
                basis=self.basis,
                order=self.order,
                over=self.over,
                what="output",
                since=oldest_step(self.schedule, self.first),
            ),
        )


class HiCache(LevelRecipe):
    """HiCache (arXiv 2508.16984), as a recipe.

    TaylorSeer's schedule with scaled Hermite polynomials in place of powers, at either level. The
    published method is at level `modules`.

    Attributes:
        interval: A computed step and `interval - 1` forecasts; 5 to 6 in published launchers, 6
            unless a budget is given.
        budget: Instead of `interval`: `calls` or `speedup`; the shortest interval that keeps it.
            At level `output` only.
        level: `output` keeps one output of the network; `modules` one of each module, as published.
        sites: At level `modules`, which; every attention, cross-attention and MLP unless given.
        order: Highest difference that is used; 1 to 2 in published launchers.
        first: Steps at the start that are computed.
        scale: sigma of the polynomials: 0.5 in the published configuration, 0.6 and 0.7 in
            launchers. Order 1 with the square root of 1/2 is TaylorSeer.
        over: What the differences are over: step indices as published, or sigma, which is ours.
        schedule: Whose count of the interval; see `RefreshInterval`.

    Raises:
        PolicyError: A setting is out of range or not of the level.

    Example:
        >>> HiCache(scale=0.6).parts()[1].basis
        'hermite'
    """

    order: int = 2
    first: int = 3
    scale: float = 0.5
    over: Over = "index"
    schedule: Schedule = "release"

    def __post_init__(self) -> None:
        self._settle()

    def parts(self) -> Sequence[Policy]:
        return self._place(
            self._refresh(6, first=self.first, counting=self.schedule),
            Forecaster(
                basis="hermite",
                order=self.order,
                over=self.over,
                what="output",
                scale=self.scale,
                since=oldest_step(self.schedule, self.first),
            ),
        )


class FORA(LevelRecipe):
    """FORA's uniform schedule (arXiv 2407.01425) with plain reuse, as a recipe.

    The published method is at level `modules`: it reuses the output of each attention and MLP
    module, with the gates of the current step. Level `output` reuses one output of the whole
    network, which is coarser.

    Attributes:
        interval: One computed step in so many; 3 unless a budget is given.
        budget: Instead of `interval`: `calls` or `speedup`; the shortest interval that keeps it.
            At level `output` only.
        level: `output` keeps one output of the network; `modules` one of each module, as published.
        sites: At level `modules`, which; every attention, cross-attention and MLP unless given.
        counting: `down` counts from the end, as FORA's code; the last step is computed. `up`
            counts from the start, as comparisons in other papers do.

    Raises:
        PolicyError: The interval is less than 1, or a setting is not of the level.

    Example:
        >>> FORA(interval=3).parts()[0].plan(8).computed
        (0, 1, 4, 7)
    """

    counting: Literal["down", "up"] = "down"

    def __post_init__(self) -> None:
        self._settle()

    def parts(self) -> Sequence[Policy]:
        counting: Literal["fora", "release"] = "fora" if self.counting == "down" else "release"
        return self._place(
            self._refresh(3, first=1, counting=counting),
            Forecaster(basis="taylor", order=0, over="index", what="output"),
        )
