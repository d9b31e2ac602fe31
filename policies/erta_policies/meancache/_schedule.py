"""`MeanCacheSchedule`: MeanCache's path as a skip rule of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import unit_of
from erta_framework.errors import InputError, PolicyError, ProfileError
from erta_policies.meancache._path import KIND, STEPS, EdgePath, edge_costs, planned, released
from erta_policies.shared import Budgeted, FixedSchedule, budget_of, require_device, settle
from erta_policies.shared import load_profile as loaded
from erta_policies.shared import require_match as require


class MeanCacheSchedule(FixedSchedule):
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

    model: str | None = None
    calls: int | None = None
    budget: Budgeted = None
    fresh: tuple[int, ...] | None = None
    spans: tuple[int, ...] | None = None
    profile: str | Path | Profile | None = None
    gamma: float = 4.0
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        given = [n for n in ("model", "fresh", "profile") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PolicyError(
                f"MeanCache got {' and '.join(given) or 'no path'}; give exactly one of model=... "
                "(a released table), fresh=... (with spans=...) and profile=... (calibrated)"
            )
        if (self.calls is None and self.budget is None) != (self.fresh is not None):
            raise PolicyError(
                f"MeanCache(calls={self.calls}, budget={self.budget}) with {given[0]}: "
                "calls=<network calls> or a budget goes with model and profile, and not with fresh"
            )
        if self.calls is not None and self.budget is not None:
            raise PolicyError(
                f"MeanCache got calls={self.calls} and budget={self.budget}; give one of the two"
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
        return loaded(self, self.profile, (KIND,))

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
            return released(self.model, self._calls(STEPS, None))
        steps = int(self._profile.fingerprint["num_steps"])
        return planned(self._profile, self._calls(steps, self._profile), self.gamma)

    def _calls(self, num_steps: int, profile: Profile | None) -> int:
        budget = budget_of(self)
        if budget is not None:
            return budget.calls_for(num_steps, profile, self._predicted, unit_of(self))
        assert self.calls is not None
        return self.calls

    def _predicted(self, calls: int) -> float:
        """Sum of the edge costs of the path of so many calls; infinite where there is none."""
        try:
            return sum(self._costs(planned(self._profile, calls, self.gamma).fresh))
        except ProfileError:
            return math.inf

    def _costs(self, fresh: Sequence[int]) -> list[float]:
        costs, _ = edge_costs(self._profile)
        return [float(costs[a, b]) for a, b in pairwise((*fresh, len(costs) - 1))]

    def with_calls(self, calls: int) -> Self:
        """The same path planned, or looked up, for a number of network calls."""
        return replace(self, budget=None, calls=calls)

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

    def describe(self, num_steps: int) -> dict[str, float]:
        """Number of calls and, of a calibrated path, the sum and the peak of its edge costs.

        Example:
            >>> MeanCacheSchedule(model="z-image", calls=13).describe(50)
            {'calls': 13.0}
        """
        facts = {"calls": float(self.plan(num_steps).calls)}
        if self.profile is not None:
            found = self._costs(self.path.fresh)
            facts.update(error=sum(found), peak=max(found), predicted=sum(found))
        return facts

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if self.profile is not None:
            require(self._profile, session, self.allow)
            require_device(self, self._profile, session)
        super().on_session_start(session)
