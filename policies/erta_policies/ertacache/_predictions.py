"""What a residual profile predicts of a schedule, without running anything."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.ertacache._schedule import reused_pairs
from erta_policies.ertacache._statistics import affine_fit, pair_errors, phi_table


def total_error(errors: Tensor, schedule: StepSchedule) -> float:
    """Sum of the errors `[T, T]` of the reused steps of a schedule, 0 where nothing is reused.

    Source: ours, the predicted error of a schedule; the errors are those of ERTACache (arXiv
    2508.21091).

    Example:
        >>> total_error(torch.ones(4, 4), StepSchedule.of({0, 2, 3}, 4))
        1.0
    """
    return float(sum(errors[source, step] for source, step in reused_pairs(schedule)))


def predict_errors(profile: Profile, schedule: StepSchedule) -> StepSchedule:
    """The schedule with what the calibration predicts of it, without running anything.

    Facts are averages over the reused steps, and for `r2` also over branches; NaN where nothing is
    reused.

    Args:
        profile: A residual profile.
        schedule: A schedule over the same number of steps.

    Returns:
        The schedule with `predicted`, the sum of the relative L1 errors of the reused steps, and
        the facts `error` (their mean), `phi_velocity` and `phi_difference` (mean phi of both
        forms), `r2` and `r2_channel` (share of the error's variance that the affine fits explain,
        with one line for all channels or one a channel).

    Raises:
        ProfileError: The schedule has another number of steps than the profile.

    Example:
        >>> predict_errors(profile, StepSchedule.of({0, 4, 9}, 10)).describe()  # doctest: +SKIP
        {'calls': 3.0, 'predicted': 1.21, 'error': 0.17, ...}
    """
    errors = pair_errors(profile)
    if schedule.num_steps != len(errors):
        raise ProfileError(
            f"the plan has {schedule.num_steps} steps, the profile {len(errors)}; "
            "plan for the profile's number of steps"
        )
    pairs = reused_pairs(schedule)
    rows = torch.tensor([source for source, _ in pairs], dtype=torch.long)
    columns = torch.tensor([step for _, step in pairs], dtype=torch.long)
    seen = profile.statistics["samples"][:, columns] > 0  # [b, pairs]
    facts = {
        "error": float(errors[rows, columns].mean()),
        "phi_velocity": float(phi_table(profile, "velocity")[rows, columns].mean()),
        "phi_difference": float(phi_table(profile, "difference")[rows, columns].mean()),
    }
    for name, per_channel in (("r2", False), ("r2_channel", True)):
        r2 = affine_fit(profile, per_channel).r2[:, rows, columns].mean(dim=-1)
        facts[name] = float(r2[seen].mean())
    return replace(schedule, predicted=total_error(errors, schedule), facts=facts)


def errors_on_arrival(errors: Tensor, schedule: StepSchedule) -> tuple[float, ...]:
    """For every step, the error `[T, T]` of reusing there the newest evaluation before it.

    It is the error that made a walk compute or reuse the step; NaN at step 0.

    Example:
        >>> errors_on_arrival(torch.ones(3, 3), StepSchedule.of({0, 2}, 3))
        (nan, 1.0, 1.0)
    """
    before = schedule.sources[:-1]
    return (math.nan, *(float(errors[source, i]) for i, source in enumerate(before, start=1)))
