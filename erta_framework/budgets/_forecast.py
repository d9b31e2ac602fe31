"""What a list of policies will do, asked without sampling anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from erta_framework.budgets._planner import find_planner, sign_schedule
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.calibration import Profile
from erta_framework.errors import PolicyError
from erta_framework.plugins import Policy, flatten


def forecast(policies: Sequence[Policy], num_steps: int) -> StepSchedule:
    """The schedule of the first policy that plans.

    Args:
        policies: Recipes are expanded into their parts.
        num_steps: Steps of the schedule.

    Raises:
        PolicyError: None of them plans ahead, or the one that does breaks the protocol `Planner`.

    Example:
        >>> from erta_framework.budgets import ListedSteps
        >>> forecast([ListedSteps(steps=(0, 2, 4))], 5).calls
        3
    """
    planner = find_planner(policies)
    if planner is None:
        names = ", ".join(part.name for part in flatten(policies)) or "no policies"
        raise PolicyError(
            f"none of the policies plans ahead ({names}): they decide while sampling, or never; "
            "run `erta sample` and read its trace"
        )
    found = sign_schedule(planner.plan(num_steps), planner, num_steps)
    known = any(not math.isnan(error) for error in found.errors)
    return found if known else replace(found, errors=())


def promise(policies: Sequence[Policy], num_steps: int | None = None) -> str:
    """What every request will cost, in a line; empty where nothing says so beforehand.

    Args:
        policies: Recipes are expanded into their parts.
        num_steps: Steps of the schedule; by default those of the planner's profile.

    Example:
        >>> from erta_framework.budgets import ListedSteps
        >>> promise([ListedSteps(steps=(0, 2, 5))], 6)
        'every request computes 3 of 6 steps, 2.00 steps a network call (listed_steps)'
    """
    planner = find_planner(policies)
    steps = num_steps if num_steps is not None else read_profile_steps(planner)
    if planner is None or steps is None:
        return ""
    schedule = forecast(policies, steps)
    said = (
        f"every request computes {schedule.calls} of {steps} steps, {schedule.speedup:.2f} steps a "
        f"network call ({schedule.policy}"
    )
    predicted = schedule.predicted
    return f"{said})" if predicted is None else f"{said}, predicted error {predicted:.4g})"


def read_profile_steps(policy: object) -> int | None:
    """Steps of the profile that a policy holds, None without one."""
    source = getattr(policy, "profile", None)
    if source is None:
        return None
    profile = source if isinstance(source, Profile) else Profile.load(source)
    return profile.num_steps
