"""Tiers: what a request may ask for in place of the budget that a pipeline was attached with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erta_framework.budgets._forecast import forecast, read_profile
from erta_framework.budgets._measured_front import MeasuredFront
from erta_framework.budgets._planner import find_planner
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.calibration import Profile
from erta_framework.errors import ProfileError
from erta_framework.plugins import Policy, with_budget

UNMEASURED = "or take it without a measurement: measured=False"


@dataclass(frozen=True, slots=True, eq=False)
class Tier:
    """Policies with the budget of a request.

    Attributes:
        budget: What was asked for, such as `{"speedup": 3.0}`.
        policies: The policies that keep it.
        calls: Network calls of each branch; None where the steps are not known yet.
        psnr: Mean PSNR against the full run, as measured on calibration samples; None where it was
            not.
    """

    budget: Mapping[str, Any]
    policies: tuple[Policy, ...]
    calls: int | None = None
    psnr: float | None = None

    def describe(self) -> str:
        """The tier in words."""
        asked = ", ".join(f"{kind}={amount}" for kind, amount in self.budget.items())
        calls = "" if self.calls is None else f": {self.calls} calls"
        measured = "not measured" if self.psnr is None else f"measured {self.psnr:.1f} dB"
        return f"{asked}{calls}, {measured}"


def plan_tier(
    policies: Sequence[Policy], budget: Mapping[str, Any], *, measured: bool = True
) -> Tier:
    """The tier of a budget: a plan whose quality was measured.

    Args:
        policies: As they were listed, with whatever budget they have.
        budget: Such as `{"speedup": 3.0}`, `{"psnr": 35}` or `{"quality": "high"}`.
        measured: Whether the plan must lie within those that were measured.

    Raises:
        PolicyError: No policy takes the budget.
        ProfileError: The plan is out of reach, or none of so many calls was measured.
    """
    chosen = with_budget(policies, budget)
    planner = find_planner(chosen)
    profile = read_profile(planner)
    if profile is None:
        if measured:
            names = ", ".join(policy.name for policy in chosen)
            raise ProfileError(
                f"a tier is a plan that was measured, and {names} holds no profile; calibrate and "
                f"measure one (`erta calibrate`, then `erta plan --measure`), {UNMEASURED}"
            )
        return Tier(dict(budget), chosen)
    schedule = forecast(chosen, profile.num_steps)
    psnr = read_quality_of(schedule, profile) if measured else None
    return Tier(dict(budget), chosen, schedule.calls, psnr)


def read_quality_of(schedule: StepSchedule, profile: Profile) -> float:
    """The PSNR that a plan promises, from the measured plans on both sides of it.

    Raises:
        ProfileError: Nothing was measured in the plan's unit, or only more calls or fewer.
    """
    front = MeasuredFront.of(profile, schedule.unit)
    if front is None:
        raise ProfileError(
            f"a tier is a plan that was measured, and {profile!r} holds no measured plans of "
            f"{schedule.unit}; measure some with `erta plan --measure`, {UNMEASURED}"
        )
    low, high = front.calls[0], front.calls[-1]
    if not low <= schedule.calls <= high:
        raise ProfileError(
            f"{schedule.calls} network calls were asked for, and {profile!r} holds measured plans "
            f"of {low} to {high}; ask for one of these, measure more calls with "
            f"`erta plan --measure --calls {schedule.calls}`, {UNMEASURED}"
        )
    return float(np.interp(schedule.calls, front.calls, front.psnr))
