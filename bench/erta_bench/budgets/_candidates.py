"""The schedules that are compared, each with the predictors that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erta_bench.setting import PROFILE, Setting, Spec, build_policy
from erta_framework.budgets import Replays, ReplaySetting, StepSchedule, forecast, with_steps
from erta_framework.calibration import Profile
from erta_framework.plugins import Policy

PREDICTORS: Mapping[str, tuple[Spec, ...]] = {
    "residual": ("residual_reuse",),
    "residual + K, B": ("residual_reuse", {"error_linearizer": {"profile": PROFILE}}),
    "forecast": ({"forecaster": {"basis": "newton", "order": 1, "over": "sigma"}},),
}
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "threshold walk": {},
    "reuse": {"cost": "reuse"},
    "grouping": {"cost": "grouping"},
    "integrated": {"cost": "integrated"},
    "corrected": {"cost": "corrected"},
    "reuse, monotone": {"cost": "reuse", "monotone": True},
    "forecast": {"cost": "forecast"},
    "forecast, monotone": {"cost": "forecast", "monotone": True},
}
COMPARED: Mapping[str, tuple[str, ...]] = {
    "residual": ("threshold walk", "reuse", "grouping", "integrated", "reuse, monotone"),
    "residual + K, B": ("threshold walk", "reuse", "corrected"),
    "forecast": ("threshold walk", "reuse", "forecast", "forecast, monotone"),
}
"""The schedules that are compared with each predictor: an edge cost only with its own predictor."""
REFINED: Mapping[str, str] = {
    "residual": "reuse",
    "residual + K, B": "corrected",
    "forecast": "forecast",
}
"""The schedule whose plans are refined for each predictor, by replays with it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row before it is run.

    Attributes:
        budget: Network calls of each branch that were asked for.
        stands_in: A name of `PREDICTORS`.
        name: A name of `SCHEDULES`, or what was done to one.
        policies: What runs.
        plan: The steps that they will compute.
    """

    budget: int
    predictor: str
    name: str
    policies: tuple[Policy, ...]
    plan: StepSchedule


def make_candidate(
    budget: int, predictor: str, name: str, policies: Sequence[Policy], steps: int
) -> Candidate:
    """A row, with its plan."""
    return Candidate(budget, predictor, name, tuple(policies), forecast(policies, steps))


def build_schedule(name: str, calls: int, predictor: str, profile: Profile) -> tuple[Policy, ...]:
    """A schedule and a predictor, on a profile."""
    options: dict[str, Any] = {"profile": PROFILE, "budget": {"calls": calls}, **SCHEDULES[name]}
    rule = "skip_policy" if name == "threshold walk" else "planned_schedule"
    specs: tuple[Spec, ...] = ({rule: options}, *PREDICTORS[predictor])
    return tuple(build_policy(spec, profile) for spec in specs)


def list_candidates(profile: Profile, number: int, steps: int) -> list[Candidate]:
    """The rows of one number of calls, without the refined ones."""
    return [
        make_candidate(
            number, predictor, name, build_schedule(name, number, predictor, profile), steps
        )
        for predictor, names in COMPARED.items()
        for name in names
    ]


def make_replays(setting: Setting, samples: int, seed: int) -> Replays:
    """Replays on so many calibration prompts, against a full run of their own."""
    shared = ReplaySetting(
        sampler=setting.make_sampler,
        model=setting.model,
        prompts=setting.calibration[:samples],
        seed=seed,
        batch=setting.batch_size,
    )
    return Replays.of(shared, setting.steps)


def refine_candidates(
    replays: Replays, profile: Profile, number: int, steps: int, trials: int
) -> list[Candidate]:
    """Refined plans of one number of calls."""
    found = []
    for predictor, name in REFINED.items():
        policies = build_schedule(name, number, predictor, profile)
        plan = forecast(policies, steps)
        values, _ = replays.measure_quality(policies, plan.calls)
        better, _ = replays.refine_steps(policies, plan.computed, float(values.mean()), trials)
        moved = with_steps(policies, better)
        found.append(make_candidate(number, predictor, f"{name}, refined", moved, steps))
    return found
