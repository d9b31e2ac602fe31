"""`PlannedSchedule`: the schedule that dynamic programming finds for a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.budgets import REMEDY, MeasuredFront, StepSchedule
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import KIND, Signal, errors_on_arrival, pair_errors
from erta_policies.planning._costs import FAMILIES, Cost, price_edges
from erta_policies.planning._plans import (
    GAMMA,
    plan_all_calls,
    read_edge_costs,
    take_within,
    total_cost,
)
from erta_policies.shared import (
    BudgetedPlanner,
    FixedSchedule,
    PlanBudget,
    load_profile,
    require_match,
)


class PlannedSchedule(BudgetedPlanner, FixedSchedule):
    """Computes the steps that a planner chose from a profile for a budget.

    ERTACache walks the steps once, and lambda decides at each. This compares all schedules with so
    many computed steps and takes the one whose edges cost least: dynamic programming, the same plan
    every time. Choose the `cost` of an edge for the predictor of the reused steps: `"reuse"`,
    `"grouping"` and `"integrated"` measure residual reuse, `"corrected"` the error that an
    `ErrorLinearizer` leaves of it, `"forecast"` a first-order `Forecaster`. With `refined` the plan
    is one that a search improved by replaying it.

    Source: MeanCache (arXiv 2601.19961) for the path with a power gamma under a budget, CacheQuant
    (arXiv 2503.01323) and ProCache (arXiv 2512.17298) for two of its families; planning all of them
    from a profile of `ResidualProfiler`, and the costs `"corrected"` and `"forecast"`, are ours.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        budget: What to plan for: exactly one of `calls`, `speedup`, `work`, `psnr` and
            `seconds`.
        cost: What an edge costs; see `erta_policies.planning.price_edges`.
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
        PlanBudget(speedup=2.0)
    """

    profile: str | Path | Profile | None = None
    cost: Cost = "reuse"
    gamma: float = GAMMA
    longest: int | None = None
    monotone: bool = False
    signal: Signal = "max"
    refined: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._settle_budget()
        if self.budget is None:
            raise PolicyError(
                "PlannedSchedule got no budget; give budget={calls: 20}, or one of speedup, work, "
                "psnr and seconds"
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
        _ = self._schedule

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache import ResidualProfiler

        return ResidualProfiler()

    def with_calls(self, calls: int) -> Self:
        """The same planner for another number of network calls, unrefined."""
        return replace(self, budget=PlanBudget(calls=calls), refined=False)

    @property
    def unit(self) -> str:
        """What its predicted errors are in; plans that were measured hold for the same unit."""
        return f"{self.name} {self.cost}, gamma {self.gamma:g}, signal {self.signal}"

    @cached_property
    def _profile(self) -> Profile:
        return load_profile(self, self.profile, (KIND,))

    @property
    def _num_steps(self) -> int:
        return self._profile.num_steps

    @cached_property
    def _front(self) -> Mapping[int, StepSchedule]:
        """The best schedule of every number of calls, all from one pass."""
        found = plan_all_calls(
            self._profile,
            self.cost,
            gamma=self.gamma,
            signal=self.signal,
            longest=self.longest,
            monotone=self.monotone,
        )
        return {calls: replace(path, unit=self.unit) for calls, path in found.items()}

    @cached_property
    def _schedule(self) -> StepSchedule:
        """The schedule of the budget, without predictions if it was refined."""
        calls = self._calls_for(
            self._num_steps,
            self._profile,
            lambda number: total_cost(take_within(self._front, number)),
        )
        assert calls is not None
        if not self.refined:
            return take_within(self._front, calls)
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
        steps: tuple[int, ...] = max(fitting, key=len)
        return StepSchedule.of(steps, self._num_steps)

    def schedules(self, num_steps: int) -> Mapping[int, StepSchedule]:
        """The best schedule of every number of calls, unrefined, all from one pass.

        Raises:
            ProfileError: The profile has another number of steps.
        """
        self._require_steps(num_steps)
        return self._front

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the plan.

        Raises:
            ProfileError: The profile has another number of steps, or the budget is out of reach.
        """
        self._require_steps(num_steps)
        return self._schedule.computed

    def _require_steps(self, num_steps: int) -> None:
        if num_steps != self._num_steps:
            raise ProfileError(
                f"{self!r} has a profile of {self._num_steps} steps, a schedule of {num_steps} was "
                "asked for; calibrate for that number of steps"
            )

    def predict(self, schedule: StepSchedule) -> StepSchedule:
        """The predicted error of the plan, and the sum and the largest of its edges.

        The predicted error is the gamma-norm of the edge costs, in the unit of the cost; of a plan
        with more calls it is never larger. The errors of single steps are relative L1 errors of
        reuse, whatever the cost.
        """
        # without limits of length and growth, which a refined plan need not keep
        table = price_edges(self._profile, self.cost, signal=self.signal)
        costs = read_edge_costs(table, schedule.computed)
        return replace(
            schedule,
            predicted=sum(cost**self.gamma for cost in costs) ** (1 / self.gamma),
            unit=self.unit,
            facts={"sum": sum(costs), "peak": max(costs)},
            errors=errors_on_arrival(pair_errors(self._profile, self.signal), schedule),
        )

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require_match(self._profile, session, self.allow)
        self._require_device(self._profile, session)
        super().on_session_start(session)
