"""The front of a planner: the best plan of each number of network calls, as rows and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from erta_framework.budgets._forecast import forecast
from erta_framework.budgets._measured_front import MeasuredFront
from erta_framework.budgets._replay import for_calls
from erta_framework.errors import ErtaError, InputError
from erta_framework.plugins import Policy, flatten


@runtime_checkable
class FrontPlanner(Protocol):
    """A policy that has the plans of all numbers of calls at once.

    `all_plans(num_steps)` gives the computed steps and the predicted error of each.
    """

    def all_plans(self, num_steps: int) -> Mapping[int, tuple[tuple[int, ...], float]]: ...


@dataclass(frozen=True, slots=True)
class FrontRow:
    """One plan of a front.

    Attributes:
        computed: Computed steps, rising.
        num_steps: Steps of the schedule.
        predicted: What the planner predicts, in its own unit; NaN where it does not.
        psnr: Measured mean PSNR on calibration samples, None where this number was not measured.
        psnr_std: Deviation over samples.
        refined_psnr: The same after refinement.
        seconds: Of a request, from the measured seconds of full and cached runs.
    """

    computed: tuple[int, ...]
    num_steps: int
    predicted: float
    psnr: float | None = None
    psnr_std: float | None = None
    refined_psnr: float | None = None
    seconds: float | None = None

    @property
    def calls(self) -> int:
        """Network calls of each branch."""
        return len(self.computed)

    def record(self) -> dict[str, object]:
        """As JSON holds it."""
        return {
            "steps": self.num_steps,
            "calls": self.calls,
            "speedup": self.num_steps / self.calls,
            "predicted": None if math.isnan(self.predicted) else self.predicted,
            "psnr": self.psnr,
            "psnr_std": self.psnr_std,
            "refined_psnr": self.refined_psnr,
            "seconds": self.seconds,
            "computed": list(self.computed),
        }


def front_of(
    policies: Sequence[Policy], num_steps: int, measured: MeasuredFront | None = None
) -> list[FrontRow]:
    """The plans that no other beats in both calls and predicted error, fewest calls first.

    Args:
        policies: One of them takes a budget, or knows all plans.
        num_steps: Steps of the schedule.
        measured: Plans that were replayed.

    Raises:
        PolicyError: None of the policies takes a budget.
        InputError: No number of calls can be planned.
    """
    found: list[FrontRow] = []
    best = math.inf
    for steps, predicted in plans_of(policies, num_steps):
        if found and (len(steps) <= found[-1].calls or predicted >= best):
            continue
        best = math.inf if math.isnan(predicted) else predicted
        found.append(FrontRow(steps, num_steps, predicted, **known(steps, measured, num_steps)))
    if not found:
        raise InputError(f"no number of calls up to {num_steps} can be planned with these policies")
    return found


def plans_of(policies: Sequence[Policy], num_steps: int) -> list[tuple[tuple[int, ...], float]]:
    """Steps and predicted error of every number of calls that can be planned, rising."""
    for part in flatten(policies):
        if isinstance(part, FrontPlanner):
            plans = part.all_plans(num_steps)
            return [plans[calls] for calls in sorted(plans)]
    for_calls(policies, num_steps)  # says if nobody plans
    found: list[tuple[tuple[int, ...], float]] = []
    for calls in range(1, num_steps + 1):
        try:
            plan = forecast(for_calls(policies, calls), num_steps)
        except ErtaError:  # fewer calls than the forced steps
            continue
        found.append((plan.computed, plan.facts.get("predicted", math.nan)))
    return found


def known(
    steps: tuple[int, ...], measured: MeasuredFront | None, num_steps: int
) -> dict[str, float]:
    """What was measured for a plan."""
    if measured is None:
        return {}
    facts: dict[str, float] = {}
    if measured.timed:
        fixed, each = measured.seconds_line(num_steps)
        facts["seconds"] = fixed + each * len(steps)
    if steps in measured.steps:
        row = measured.steps.index(steps)
        facts.update(
            psnr=measured.psnr[row],
            psnr_std=measured.psnr_std[row],
            refined_psnr=measured.refined_psnr[row],
        )
    return facts
