"""`MultistepSchedule`: computed steps for predictors that combine several earlier outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Self

import torch
from torch import Tensor

from erta_framework import Profile, Profiler, SessionInfo, hookimpl
from erta_framework.errors import PolicyError, ProfileError
from erta_policies.ertacache import KIND, Signal, combined, evenly, per_sample, presence
from erta_policies.planning.costs import required, sigmas
from erta_policies.planning.plans import front, within
from erta_policies.shared import Budgeted, FixedSchedule, PlanBudget, budget_of, settle
from erta_policies.shared import load_profile as loaded
from erta_policies.shared import require_match as require

RIDGE = 1e-4
"""Keeps the weights of almost equal velocities small; relative to the square of each difference."""
REACH = 4
"""How far one move of the search shifts a computed step."""


class MultistepSchedule(FixedSchedule):
    """Computes the steps after which combinations of the last few outputs err least.

    What `FittedVelocity` or a `Forecaster` of higher order makes of reused steps depends on several
    computed steps, so no cost of single edges says what a schedule is worth. Here every reused step
    is charged the error of the best combination, with weights that add up to 1, of the `depth`
    newest computed velocities, on the calibrated full run. Errors between two computed steps add
    up, those of different gaps add up as squares, and a gap that starts at sigma counts
    `exp(growth * sigma / sigma_max)` times: what goes wrong early grows until the end. A search
    moves one computed step at a time, from an even schedule and from two planned ones, until no
    move helps.

    Source: ours.

    Attributes:
        profile: File or profile of a `ResidualProfiler`.
        budget: `calls` or `speedup`.
        depth: How many computed velocities a reused step combines.
        growth: How much more an error counts at the largest sigma than at 0, as a power of e.
        signal: How guidance branches combine, as in `SkipPolicy`.
        allow: Fingerprint fields of the profile that may differ from the run.

    Raises:
        PolicyError: There is no budget in calls, or a setting is out of range.

    Example:
        >>> MultistepSchedule(profile="wan.safetensors", budget={"calls": 12}).budget
        PlanBudget(calls=12, speedup=None, psnr=None, seconds=None)
    """

    profile: str | FilePath | Profile | None = None
    budget: Budgeted = None
    depth: int = 4
    growth: float = 3.0
    signal: Signal = "max"
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        budget = budget_of(self)
        if budget is None or (budget.calls is None and budget.speedup is None):
            raise PolicyError(
                f"MultistepSchedule got the budget {self.budget}; give budget={{calls: 12}} or "
                "speedup; for psnr and seconds, planned_schedule reads measured plans"
            )
        if self.depth < 1 or not math.isfinite(self.growth):
            raise PolicyError(
                f"MultistepSchedule(depth={self.depth}, growth={self.growth}): depth must be at "
                "least 1 and growth finite"
            )

    def prepare(self) -> None:
        _ = self._steps

    def calibrator(self) -> Profiler | None:
        from erta_policies.ertacache import ResidualProfiler

        return ResidualProfiler()

    def with_calls(self, calls: int) -> Self:
        """The same schedule for another number of network calls."""
        return replace(self, budget=PlanBudget(calls=calls))

    @cached_property
    def _profile(self) -> Profile:
        return loaded(self, self.profile, (KIND,))

    @cached_property
    def _errors(self) -> Combinations:
        return Combinations.of(self._profile, self.depth, self.growth, self.signal)

    @cached_property
    def _steps(self) -> tuple[int, ...]:
        budget = budget_of(self)
        assert budget is not None
        num_steps = int(self._profile.fingerprint["num_steps"])
        calls = budget.calls_for(num_steps)
        if calls == 1:
            return (0,)
        errors = self._errors
        starts = [evenly(calls, num_steps).computed]
        for cost in ("forecast", "integrated"):
            plan = within(front(self._profile, cost, signal=self.signal), calls).steps
            starts += [plan] if len(plan) == calls else []
        return min((searched(errors, start) for start in starts), key=errors.total)

    def computed_steps(self, num_steps: int) -> tuple[int, ...]:
        """The steps of the plan.

        Raises:
            ProfileError: The profile has another number of steps.
        """
        planned = int(self._profile.fingerprint["num_steps"])
        if num_steps != planned:
            raise ProfileError(
                f"{self!r} has a profile of {planned} steps, a schedule of {num_steps} was asked "
                "for; calibrate for that number of steps"
            )
        return self._steps

    def describe(self, num_steps: int) -> dict[str, float]:
        """Calls, and the predicted error: that of the latents at the end, up to a factor."""
        steps = self.computed_steps(num_steps)
        return {"calls": float(len(steps)), "predicted": self._errors.total(steps) ** 0.5}

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        require(self._profile, session, self.allow)
        plan = self.plan(session.num_steps)
        session.state_of(self, lambda: frozenset(plan.computed))


@dataclass(slots=True)
class Combinations:
    """Errors of combinations of computed velocities, from their distances alone.

    Attributes:
        distances: Mean squared distances of the velocities of all pairs of steps, `[b, T, T]`.
        present: Whether a branch runs at a step, `[b, T]`.
        sizes: Lengths of the steps in sigma, `[T]`.
        weights: How much an error at a step counts, `[T]`.
        depth: How many velocities are combined.
        signal: How branches combine.
        known: Errors that were asked for, by computed steps.
    """

    distances: Tensor
    present: Tensor
    sizes: list[float]
    weights: list[float]
    depth: int
    signal: Signal
    known: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, depth: int, growth: float, signal: Signal) -> Combinations:
        """Those of a residual profile."""
        required(profile, "velocity", "multistep")
        apart = per_sample(profile, "velocity")
        grid = sigmas(profile, "multistep")
        present, _ = presence(profile)
        return cls(
            distances=apart + apart.transpose(1, 2),
            present=present,
            sizes=grid.diff().abs().tolist(),
            weights=(growth * grid[:-1] / grid.max()).exp().tolist(),
            depth=depth,
            signal=signal,
        )

    def total(self, steps: Sequence[int]) -> float:
        """What a schedule costs: the weighted sum of the squared errors of its gaps."""
        ends = [*steps[1:], len(self.sizes)]
        found = 0.0
        for place, (start, end) in enumerate(zip(steps, ends, strict=True)):
            nodes = tuple(steps[max(0, place + 1 - self.depth) : place + 1])
            errors = self.after(nodes)
            gap = sum(self.sizes[step] * errors[step] for step in range(start + 1, end))
            found += self.weights[start] * gap**2
        return found

    def after(self, nodes: tuple[int, ...]) -> list[float]:
        """Root mean square error of the best combination of these steps at every step, `[T]`."""
        if nodes not in self.known:
            each = [
                combination_errors(distances, [n for n in nodes if bool(self.present[branch, n])])
                for branch, distances in enumerate(self.distances)
            ]
            errors = combined(torch.stack(each).sqrt()[:, None], self.present, self.signal)[0]
            self.known[nodes] = errors.tolist()
        return self.known[nodes]


def combination_errors(distances: Tensor, nodes: Sequence[int]) -> Tensor:
    """Mean squared errors of the best affine combinations at all steps, `[T]`.

    Where nothing can be combined they are infinite.

    Args:
        distances: Squared distances of all pairs of steps, `[T, T]`.
        nodes: The steps that are combined, the newest last.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 3.0])
        >>> distances = (line[:, None] - line[None, :]) ** 2
        >>> combination_errors(distances, [1]).tolist()
        [1.0, 0.0, 4.0]
        >>> bool(combination_errors(distances, [0, 1])[2] < 1e-4)  # on the line through both
        True
    """
    if not nodes:
        return torch.full_like(distances[0], torch.inf)
    *others, newest = nodes
    apart = distances[newest]
    if not others:
        return apart
    own = distances[others, newest]
    square = 0.5 * (own[:, None] + own[None, :] - distances[others][:, others])
    right = 0.5 * (own[:, None] + apart[None, :] - distances[others])
    penalty = torch.where(own > 0, RIDGE * own, 1.0)
    weights = torch.linalg.solve(square + torch.diag(penalty), right)
    left: Tensor = apart - 2 * (weights * right).sum(0) + (weights * (square @ weights)).sum(0)
    return left.clamp(min=0)


def searched(errors: Combinations, start: Sequence[int]) -> tuple[int, ...]:
    """Move one computed step at a time, but for the first, until no move lowers the cost."""
    steps, least = list(start), errors.total(start)
    moving = True
    while moving:
        moving = False
        for place in range(1, len(steps)):
            for shift in (*range(-REACH, 0), *range(1, REACH + 1)):
                moved = steps[place] + shift
                if not 0 < moved < len(errors.sizes) or moved in steps:
                    continue
                tried = sorted([*steps[:place], moved, *steps[place + 1 :]])
                cost = errors.total(tried)
                if cost < least * (1 - 1e-9):
                    steps, least, moving = tried, cost, True
                    break
    return tuple(steps)
