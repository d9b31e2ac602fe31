"""What a list of policies will do, asked without sampling anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from erta_framework.budgets._asked_calls import count_asked_calls
from erta_framework.budgets._planner import find_planner, sign_schedule
from erta_framework.budgets._step_schedule import StepSchedule
from erta_framework.calibration import Profile
from erta_framework.config import registered_name
from erta_framework.errors import ErtaError, PolicyError
from erta_framework.plugins import Policy, flatten, list_budgeted


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
    owner = next((policy for policy in policies if find_planner([policy]) is not None), None)
    planner = None if owner is None else find_planner([owner])
    if planner is None or owner is None:
        names = ", ".join(part.name for part in flatten(policies)) or "no policies"
        raise PolicyError(
            f"none of the policies plans ahead ({names}): they decide while sampling, or never; "
            "run `erta sample` and read its trace"
        )
    found = replace(
        sign_schedule(planner.plan(num_steps), planner, num_steps),
        owner=name_policy(owner),
        asked=read_asked_calls(planner, num_steps),
    )
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
        f"network call ({schedule.owner}"
    )
    predicted = schedule.predicted
    said += ")" if predicted is None else f", predicted error {predicted:.4g})"
    return "; ".join(filter(None, (said, explain_shortfall(schedule))))


def explain_shortfall(schedule: StepSchedule) -> str:
    """Why a plan makes fewer calls than were asked for, and who makes as many; empty if it does.

    Example:
        >>> explain_shortfall(StepSchedule((0, 2), (0, 0, 2, 2), asked=2))
        ''
    """
    if schedule.asked is None or schedule.calls >= schedule.asked:
        return ""
    exact = [name for name in list_budgeted(exact=True) if name != schedule.owner]
    return (
        f"asked {schedule.asked} calls, got {schedule.calls}: no setting of {schedule.owner} makes "
        f"{schedule.asked} of {schedule.num_steps}; exactly {schedule.asked} make "
        f"{', '.join(exact)}"
    )


def read_asked_calls(planner: object, num_steps: int) -> int | None:
    """The network calls that a planner was asked for; None where it was asked for none."""
    budget = getattr(planner, "budget", None)
    speedup: object = getattr(budget, "speedup", None)
    calls: object = getattr(budget, "calls", None) or getattr(planner, "calls", None)
    return count_asked_calls(
        num_steps,
        calls=calls if isinstance(calls, int) else None,
        speedup=speedup if isinstance(speedup, int | float) else None,
    )


def name_policy(policy: Policy) -> str:
    """The name of a policy in the catalogue, else its own."""
    try:
        return registered_name(type(policy))
    except ErtaError:
        return policy.name


def read_profile_steps(policy: object) -> int | None:
    """Steps of the profile that a policy holds, None without one."""
    profile = read_profile(policy)
    return None if profile is None else profile.num_steps


def read_profile(policy: object) -> Profile | None:
    """The profile that a policy holds, None without one."""
    source = getattr(policy, "profile", None)
    if source is None:
        return None
    return source if isinstance(source, Profile) else Profile.load(source)
