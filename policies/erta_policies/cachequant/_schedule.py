"""`GroupedSteps`: a schedule whose reused steps are near the ones that they reuse."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from erta_framework import Profile, Profiler, SessionInfo
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.cachequant._grouping import group_evenly, group_steps
from erta_policies.cachequant._profiler import KIND, FeatureProfiler, match_features
from erta_policies.shared import (
    BudgetedPlanner,
    FixedSchedule,
    PlanBudget,
    load_profile,
)

DEFAULT_INTERVAL = 5
Grouping = Literal["optimal", "even"]


class GroupedSteps(BudgetedPlanner, FixedSchedule):
    """Computes the first step of each of K groups of steps, and reuses it in the rest of the group.

    The groups are those with the least sum of L1 distances between the features of their steps and
    that of their first, found exactly by dynamic programming. With T steps and interval N there are
    K = ceil(T/N) groups of ceil(N/2) to 2N steps. Branches and places add up.

    Source: CacheQuant, arXiv 2503.01323, dynamic programming schedule.

    Attributes:
        profile: File or profile of a `FeatureProfiler`.
        interval: N; 5 unless a budget is given.
        budget: Instead of `interval`: `calls` or `speedup`, which give K, and N = ceil(T/K).
        grouping: `even` makes groups of N steps each instead, as DeepCache does.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: A setting is out of range, or no such groups cover the steps.
        ProfileError: The profile is of another number of steps.

    Example:
        >>> GroupedSteps(profile="unet.safetensors", interval=5).interval
        5
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("interval",)

    profile: str | Path | Profile | None = None
    interval: int | None = None
    grouping: Grouping = "optimal"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        if self.interval is not None and self.interval < 1:
            raise PolicyError(f"interval of {self.name} is {self.interval}, it must be at least 1")
        if self.grouping not in ("optimal", "even"):
            raise PolicyError(f"grouping is {self.grouping!r}; it is 'optimal' or 'even'")
        budget = PlanBudget.of(self.budget)
        if budget is not None and budget.measured:
            budget.front(None)  # says that nothing was measured

    def calibrator(self) -> Profiler | None:
        return FeatureProfiler(interval=self.interval or DEFAULT_INTERVAL)

    def prepare(self) -> None:
        _ = self._distances

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def _distances(self) -> Tensor:
        """Of each step to those before it, `[T, L]`, over branches, places and tensors."""
        return self._profile.statistics["distance"].sum(dim=(0, 1, 3))

    def check_session(self, session: SessionInfo) -> None:
        """Refuse a run that the profile was not made for."""
        match_features(self._profile, session, self.allow)

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The first steps of the groups."""
        known = len(self._distances)
        if num_steps != known:
            raise ProfileError(
                f"{self!r} has a profile of {known} steps, a schedule of {num_steps} was asked "
                "for; calibrate for that number of steps"
            )
        groups = self._calls_for(num_steps)
        interval = self.interval or DEFAULT_INTERVAL
        if groups is not None:
            interval = math.ceil(num_steps / groups)
        if self.grouping == "even":
            return group_evenly(num_steps, interval)
        return group_steps(self._distances, interval, groups)
