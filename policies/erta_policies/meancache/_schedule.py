"""`MeanCacheSchedule`: MeanCache's path as a skip rule of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import StepSchedule
from erta_framework.errors import InputError, PolicyError, ProfileError
from erta_policies.meancache._path import (
    KIND,
    STEPS,
    EdgePath,
    look_up_path,
    plan_path,
    price_edges,
)
from erta_policies.shared import (
    BudgetedPlanner,
    FixedSchedule,
    load_profile,
    require_match,
    require_one_option,
)


class MeanCacheSchedule(BudgetedPlanner, FixedSchedule):
    """Computes the nodes of a MeanCache path: released, listed, or planned from a profile.

    Source: MeanCache, arXiv 2601.19961; the released tables are those of UnicomAI/MeanCache at
    2e12280a (Apache-2.0), for 50 steps. The planner's gamma of 4 is the best of the paper's
    ablation; that of its main tables is not known.

    Attributes:
        model: Name of a released table: `qwen-image`, `qwen-image-2512` or `z-image`.
        calls: Network calls of each branch, of a released table or to plan for.
        budget: Instead of `calls`: one of `calls`, `speedup`, `psnr` and `seconds`.
        fresh: Computed steps, listed; the first and the last of the schedule are among them.
        spans: K of each edge between listed steps.
        profile: File or profile of a `MeanCacheProfiler`.
        gamma: Power of the edge costs; above 1 it suppresses peaks, 1 adds the costs up.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: Not exactly one of `model`, `fresh` and `profile` is given, or their options
            do not fit.

    Example:
        >>> MeanCacheSchedule(model="qwen-image", calls=10).plan(50).computed
        (0, 1, 3, 7, 14, 21, 28, 35, 42, 49)
    """

    solved_fields: ClassVar[tuple[str, ...]] = ("calls",)

    model: str | None = None
    calls: int | None = None
    fresh: tuple[int, ...] | None = None
    spans: tuple[int, ...] | None = None
    profile: str | Path | Profile | None = None
    gamma: float = 4.0
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        options = (
            "model=... (a released table)",
            "fresh=... (with spans=...)",
            "profile=... (calibrated)",
        )
        require_one_option(self, "MeanCache", options, missing="no path")
        if (self.calls is None and self.budget is None) != (self.fresh is not None):
            raise PolicyError(
                f"MeanCache(calls={self.calls}, budget={self.budget}) with fresh={self.fresh}: "
                "calls=<network calls> or a budget goes with model and profile, and not with fresh"
            )
        if self.spans is not None and self.fresh is None:
            raise PolicyError("MeanCache(spans=...) goes with fresh=...; tables bring their own")
        if not self.gamma > 0.0:
            raise PolicyError(f"MeanCache(gamma={self.gamma}): it must be above 0")
        if self.profile is None:
            _ = self.path

    def prepare(self) -> None:
        _ = self.path

    def calibrator(self) -> Profiler | None:
        from erta_policies.meancache._profiler import MeanCacheProfiler

        return MeanCacheProfiler() if self.model is None and self.fresh is None else None

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @cached_property
    def path(self) -> EdgePath:
        """The path: computed steps and spans.

        Raises:
            PolicyError: There is no such released table, or the listed steps do not fit.
            ProfileError: The profile cannot be read, or cannot be planned for so few calls.
        """
        if self.fresh is not None:
            spans = self.spans if self.spans is not None else (1,) * (len(self.fresh) - 1)
            return EdgePath(self.fresh, spans)
        if self.model is not None:
            return look_up_path(self.model, self._calls(STEPS, None))
        steps = self._profile.num_steps
        return plan_path(self._profile, self._calls(steps, self._profile), self.gamma)

    def _calls(self, num_steps: int, profile: Profile | None) -> int:
        asked = self._calls_for(num_steps, profile, self._predicted)
        calls = self.calls if asked is None else asked
        assert calls is not None
        return calls

    def _predicted(self, calls: int) -> float:
        """Sum of the edge costs of the path of so many calls; infinite where there is none."""
        try:
            return sum(self._costs(plan_path(self._profile, calls, self.gamma).fresh))
        except ProfileError:
            return math.inf

    def _costs(self, fresh: Sequence[int]) -> list[float]:
        costs, _ = price_edges(self._profile)
        return [float(costs[a, b]) for a, b in pairwise((*fresh, len(costs) - 1))]

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The nodes of the path.

        Raises:
            InputError: The path is for another number of steps.
        """
        if self.model is not None and num_steps != STEPS:
            raise InputError(
                f"the released tables of MeanCache are for {STEPS} steps, this schedule has "
                f"{num_steps}; calibrate for it: `erta calibrate --policy meancache`"
            )
        self.path.by_step(num_steps)
        return self.path.fresh

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """Of a calibrated path, the sum and the peak of its edge costs."""
        if self.profile is None:
            return schedule
        costs = self._costs(self.path.fresh)
        facts = {"error": sum(costs), "peak": max(costs)}
        return replace(schedule, predicted=sum(costs), facts=facts)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            require_match(self._profile, session, self.allow)
            self._require_device(self._profile, session)
        super().on_session_start(session)
