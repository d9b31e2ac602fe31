"""`PlannedSchedule`: the schedule that dynamic programming finds for a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Self

from torch import Tensor

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import REMEDY, MeasuredFront
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import KIND, Signal, pair_errors
from erta_policies.planning.costs import FAMILIES, Cost, edges
from erta_policies.planning.plans import GAMMA, edge_costs, front, within
from erta_policies.shared import (
    Budgeted,
    FixedSchedule,
    Path,
    PlanBudget,
    budget_of,
    require_device,
    settle,
)
from erta_policies.shared import load_profile as loaded
from erta_policies.shared import require_match as require


class PlannedSchedule(FixedSchedule):
    """Computes the steps that a planner chose from a profile for a budget.

    Where ERTACache walks the steps once and lets lambda decide, this compares all schedules with so
    many computed steps and takes the one whose edges cost least: dynamic programming, the same
    plan every time. What an edge costs, `cost` says; it fits what stands in on reused steps:
    `"reuse"`, `"grouping"` and `"integrated"` measure residual reuse, `"corrected"` what an
    `ErrorLinearizer` leaves of it, `"forecast"` a first-order `Forecaster`. With `refined` the plan
    is the nearest one that a search improved by replaying it.

    Source: MeanCache (arXiv 2601.19961) for the path with a power gamma under a budget, CacheQuant
    (arXiv 2503.01323) and ProCache (arXiv 2512.17298) for two of its families; planning all of them
    from a profile of `ResidualProfiler`, and the costs `"corrected"` and `"forecast"`, are ours.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        budget: What to plan for: exactly one of `calls`, `speedup`, `psnr` and `seconds`.
        cost: What an edge costs; see `erta_policies.planning.edges`.
        gamma: Power of the edge costs; above 1 it suppresses peaks, 1 adds them up.
        longest: Longest edge in steps; by default all.
        monotone: Whether gaps may only shrink.
        signal: How guidance branches combine, as in `SkipPolicy`.
        refined: Whether to take a plan that `erta plan --refine` improved.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no budget, no such cost, or a setting is out of range.

    Example:
        >>> PlannedSchedule(profile="wan.safetensors", budget={"speedup": 2.0}).budget
        PlanBudget(calls=None, speedup=2.0, psnr=None, seconds=None)
    """

    profile: str | FilePath | Profile | None = None
    budget: Budgeted = None
    cost: Cost = "reuse"
    gamma: float = GAMMA
    longest: int | None = None
    monotone: bool = False
    signal: Signal = "max"
    refined: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        if self.budget is None:
            raise PolicyError(
                "PlannedSchedule got no budget; give budget={calls: 20}, or one of speedup, psnr "
                "and seconds"
            )
        if self.cost not in FAMILIES:
            raise PolicyError(
                f"PlannedSchedule(cost={self.cost!r}): it is one of {', '.join(FAMILIES)}"
            )
        if not self.gamma > 0.0 or (self.longest is not None and self.longest < 1):
            raise PolicyError(
                f"PlannedSchedule(gamma={self.gamma}, longest={self.longest}): gamma must be above "
                "0 and the longest edge at least 1 step"
            )

    def prepare(self) -> None:
        _ = self._steps

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache import ResidualProfiler

        return ResidualProfiler()

    def with_calls(self, calls: int) -> Self:
        """The same planner for another number of network calls, unrefined."""
        return replace(self, budget=PlanBudget(calls=calls), refined=False)

    @property
    def unit(self) -> str:
        """What its predicted errors are in; plans that were measured hold for the same."""
        return f"{self.name} {self.cost}, gamma {self.gamma:g}, signal {self.signal}"

    @cached_property
    def _profile(self) -> Profile:
        return loaded(self, self.profile, (KIND,))

    @property
    def _num_steps(self) -> int:
        return int(self._profile.fingerprint["num_steps"])

    @cached_property
    def front(self) -> Mapping[int, Path]:
        """The best plan of every number of calls, all from one pass."""
        return front(
            self._profile,
            self.cost,
            gamma=self.gamma,
            signal=self.signal,
            longest=self.longest,
            monotone=self.monotone,
        )

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        budget = budget_of(self)
        assert budget is not None
        calls = budget.calls_for(
            self._num_steps,
            self._profile,
            lambda number: within(self.front, number).total,
            self.unit,
        )
        if not self.refined:
            return within(self.front, calls).steps
        held = MeasuredFront.of(self._profile, self.unit)
        if held is None:
            raise ProfileError(
                f"{self!r}: {self._profile!r} holds no refined plans of {self.unit}; {REMEDY} "
                "--refine N, or leave refined out"
            )
        fitting = [steps for steps in held.refined if len(steps) <= calls]
        if not fitting:
            raise ProfileError(
                f"{self!r}: the refined plans of this profile take {held.calls[0]} calls and more, "
                f"the budget has {calls}; {REMEDY} --refine N --calls {calls}"
            )
        return max(fitting, key=len)

    def all_plans(self, num_steps: int) -> dict[int, tuple[tuple[int, ...], float]]:
        """The steps and the predicted error of the plan of every number of calls.

        Raises:
            ProfileError: The profile has another number of steps.
        """
        self._require_steps(num_steps)
        return {calls: (path.steps, path.total) for calls, path in self.front.items()}

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the plan.

        Raises:
            ProfileError: The profile has another number of steps, or the budget is out of reach.
        """
        self._require_steps(num_steps)
        return self._steps

    def _require_steps(self, num_steps: int) -> None:
        if num_steps != self._num_steps:
            raise ProfileError(
                f"{self!r} has a profile of {self._num_steps} steps, a schedule of {num_steps} was "
                "asked for; calibrate for that number of steps"
            )

    def describe(self, num_steps: int) -> dict[str, float]:
        """Calls, the predicted error of the plan, and the sum and the largest of its edges.

        The predicted error is the gamma-norm of the edge costs, in the unit of the cost; of a plan
        with more calls it is never larger.
        """
        costs = edge_costs(self._edges, self.computed_steps(num_steps))
        power = sum(cost**self.gamma for cost in costs) ** (1 / self.gamma)
        return {
            "calls": float(len(self._steps)),
            "predicted": power,
            "sum": sum(costs),
            "peak": max(costs),
        }

    def step_errors(self, num_steps: int) -> list[float]:
        """Calibrated relative L1 error of reusing at each step the residual it would find."""
        errors = pair_errors(self._profile, self.signal)
        sources = self.plan(num_steps).sources
        found = [float(errors[sources[i - 1], i]) for i in range(1, num_steps)]
        return [math.nan, *found]

    @property
    def _edges(self) -> Tensor:
        # without limits, which a refined plan need not keep
        return edges(self._profile, self.cost, signal=self.signal)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require(self._profile, session, self.allow)
        require_device(self, self._profile, session)
        super().on_session_start(session)
