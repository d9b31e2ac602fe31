"""`CacheQuant`: a cut or span that is reused over groups of steps, and corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from erta_framework import Policy, Profile, Profiler
from erta_framework.modules import Cut, Select
from erta_policies.at import At
from erta_policies.cachequant._correction import ChannelCorrection
from erta_policies.cachequant._profiler import FeatureProfiler, find_kept
from erta_policies.cachequant._schedule import DEFAULT_INTERVAL, GroupedSteps, Grouping
from erta_policies.shared import BudgetedRecipe


class CacheQuant(BudgetedRecipe):
    """CacheQuant's caching half (arXiv 2503.01323), as a recipe; quantise the network beforehand.

    Stands for an `At` on a cut of a UNet, as DeepCache has it, or on a span of transformer blocks,
    with `GroupedSteps` in place of even ones, and `ChannelCorrection`, the paper's correction of
    the error of the cache. Nothing in it needs a quantised network. Quantise with torchao before
    `attach`; the correction of the error of quantised layers is `correct_outputs`.

    The paper's code has UNets only. Which blocks of a transformer are reused is ours, and so is
    adding up branches whose calls are separate.

    Attributes:
        profile: File or profile of a `FeatureProfiler` on the same `sites`.
        interval: N, one refresh in so many steps on average; 5 unless a budget is given.
        budget: Instead of `interval`: `calls` (refreshes), `speedup` (of the part that is reused)
            or `work` (of the whole network).
        sites: `Cut(branch=0)` as published, or blocks as a span.
        grouping: `optimal` as published, or `even`.
        correction: Whether what is reused is corrected.
        each_branch: A line for each guidance branch; by default one for all, as published.
        shrink: Pulls slopes towards 1, see `fit_line`; ours.
        allow: Fingerprint fields of the profile that may differ from the run, such as
            `model.quantized` for a profile of the network before it was quantised.

    Raises:
        PolicyError: A setting is out of range, or no groups cover the steps.

    Example:
        >>> [part.name for part in CacheQuant(profile="unet.safetensors", interval=5).parts()]
        ['at']
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    profile: str | Path | Profile | None = None
    interval: int | None = None
    sites: Select | Cut = Cut()
    grouping: Grouping = "optimal"
    correction: bool = True
    each_branch: bool = False
    shrink: float = 0.0
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        self.parts()  # refuses what a part refuses

    def calibrator(self) -> Profiler | None:
        return FeatureProfiler(sites=self.sites, interval=self.interval or DEFAULT_INTERVAL)

    def parts(self) -> Sequence[Policy]:
        when = GroupedSteps(
            profile=self.profile,
            interval=self.interval,
            budget=self.budget,
            grouping=self.grouping,
            allow=self.allow,
        )
        then = ChannelCorrection(
            profile=self.profile,
            each_branch=self.each_branch,
            shrink=self.shrink,
            allow=self.allow,
        )
        return (
            At(
                sites=self.sites,
                when=when,
                of=find_kept(self.sites),
                then=then if self.correction else None,
            ),
        )
