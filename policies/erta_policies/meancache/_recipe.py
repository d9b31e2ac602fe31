"""`MeanCache`: the paper as a recipe of a path and a predictor for its reused steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from erta_framework import Policy, Profile, Profiler
from erta_framework.errors import PolicyError
from erta_policies.forecast import MeanVelocity
from erta_policies.meancache._profiler import MeanCacheProfiler
from erta_policies.meancache._schedule import MeanCacheSchedule
from erta_policies.meancache._velocity import AverageVelocity, EdgeVelocity
from erta_policies.shared import BudgetedRecipe


class MeanCache(BudgetedRecipe):
    """Average-velocity caching (MeanCache, arXiv 2601.19961) as a recipe.

    Stands for a `MeanCacheSchedule` and one of three predictors:

    * `"A"`, what the released code does: `AverageVelocity`, a window that slides with every step.
    * `"B"`, the paper's edges, from secondary sources: `EdgeVelocity`, one constant velocity each.
    * `"C"`, ours: `MeanVelocity`, Adams-Bashforth 2 on the grid of the computed steps, which
      replaces the mean velocity by the trapezoid of two computed ones. It needs no latents and no
      spans, and is the same rule under any guidance.

    A and B act on each guidance branch; see `AverageVelocity` for when that is the published rule.

    Attributes:
        model: Name of a released table for 50 steps: `qwen-image`, `qwen-image-2512`, `z-image`.
        calls: Network calls of each branch, of a released table or to plan for.
        budget: Instead of `calls`: one of `calls`, `speedup`, `psnr` and `seconds`.
        fresh: Computed steps, listed, instead of a table.
        spans: K of each edge between listed steps; variants A and B need them.
        profile: File or profile of a `MeanCacheProfiler`, instead of a table.
        gamma: Power of the edge costs of the planner; 4 is among the best of the paper's ablation,
            from secondary sources.
        variant: The predictor.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `fresh` and `profile` is given, there is no such
            table, or spans are missing or without effect.

    Example:
        >>> [part.name for part in MeanCache(model="z-image", calls=15).parts()]
        ['mean_cache_schedule', 'average_velocity']
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("calls",)

    model: str | None = None
    calls: int | None = None
    fresh: tuple[int, ...] | None = None
    spans: tuple[int, ...] | None = None
    profile: str | Path | Profile | None = None
    gamma: float = 4.0
    variant: Literal["A", "B", "C"] = "A"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        if self.fresh is not None and (self.spans is None) != (self.variant == "C"):
            raise PolicyError(
                f"MeanCache(variant={self.variant!r}, spans={self.spans}) with listed fresh steps: "
                "variants A and B need a span for each edge, C has no use for them"
            )
        if self.variant not in ("A", "B", "C"):
            raise PolicyError(f"MeanCache(variant={self.variant!r}): it is A, B or C")
        self._schedule()

    def calibrator(self) -> Profiler | None:
        return MeanCacheProfiler() if self.model is None and self.fresh is None else None

    def parts(self) -> Sequence[Policy]:
        schedule = self._schedule()
        if self.variant == "A":
            return (schedule, AverageVelocity(schedule=schedule))
        if self.variant == "B":
            return (schedule, EdgeVelocity(schedule=schedule))
        return (schedule, MeanVelocity())

    def _schedule(self) -> MeanCacheSchedule:
        return MeanCacheSchedule(
            model=self.model,
            calls=self.calls,
            budget=self.budget,
            fresh=self.fresh,
            spans=self.spans,
            profile=self.profile,
            gamma=self.gamma,
            allow=self.allow,
        )
