"""What a profile says of plans: the plans themselves, and the error that each led to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erta_framework import Profile
from erta_framework.calibration import Entry, ProfileKind
from erta_framework.errors import ProfileError
from erta_policies.shared import StepPlan

KIND = ProfileKind("procache_profiler", {"full": Entry(shape="P T"), "error": Entry(shape="P")})


@dataclass(frozen=True, slots=True)
class ScoredPlan:
    """A plan and its error.

    Attributes:
        plan: The plan, of full and reused steps.
        error: Mean over samples; lower is better.
    """

    plan: StepPlan
    error: float


def write_plans(plans: Sequence[StepPlan], samples: int) -> Tensor:
    """Full steps of plans as sums over samples, `[P, T]`: so many where a step is full, else 0."""
    rows = [[float(samples * (state == "F")) for state in plan.states] for plan in plans]
    return torch.tensor(rows, dtype=torch.float64)


def read_scores(profile: Profile) -> tuple[ScoredPlan, ...]:
    """The plans of a profile with their errors.

    Raises:
        ProfileError: It was merged from profiles of other plans, or a plan does not begin with a
            full step.
    """
    share = profile.statistics["full"] / profile.samples
    if bool(((share != 0) & (share != 1)).any()) or not bool((share[:, 0] == 1).all()):
        raise ProfileError(
            f"the plans of {profile!r} are not the same for all of its samples, or do not begin "
            "with a full step; merge profiles that scored the same plans"
        )
    errors = (profile.statistics["error"] / profile.samples).tolist()
    plans = ("".join("F" if full else "c" for full in row) for row in share.tolist())
    return tuple(ScoredPlan(StepPlan(p), e) for p, e in zip(plans, errors, strict=True))
