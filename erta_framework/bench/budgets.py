"""Schedules at equal network calls: the threshold walk, each planner, and refined plans.

Every row is compared with the full run of the same held-out prompts from the same noise; profiles,
plans and refinements see calibration prompts and noise alone. A second benchmark moves lambda by a
fifth up and down from the value that was solved for a budget.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from erta_framework.bench.ablation import (
    CALIBRATION_SEEDS,
    Overall,
    Setting,
    calibrated,
    checked,
    shared_settings,
)
from erta_framework.bench.outcome import Outcome, record
from erta_framework.bench.report import Bench, Row, Value
from erta_framework.bench.variants import PROFILE, Spec, placed
from erta_framework.planning import Forecast, forecast
from erta_framework.policy import Policy
from erta_framework.profile import Profile
from erta_framework.replay import Replays, ReplaySetting, cost_of, refined, with_steps
from erta_framework.sampler import Samples

COLUMNS = {
    "budget": "calls",
    "stands_in": "stands in",
    "name": "schedule",
    "calls": "made",
    "predicted": "predicted",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "same_as": "same as",
}
LAMBDA_COLUMNS = {
    "budget": "asked",
    "name": "lambda",
    "threshold": "value",
    "calls": "calls",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
}
STANDS_IN: Mapping[str, tuple[Spec, ...]] = {
    "residual": ("residual_reuse",),
    "residual + K, B": ("residual_reuse", {"error_linearizer": {"profile": PROFILE}}),
    "forecast": ({"forecaster": {"basis": "newton", "order": 1, "over": "sigma"}},),
}
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "threshold walk": {},
    "reuse": {"cost": "reuse"},
    "grouping": {"cost": "grouping"},
    "integrated": {"cost": "integrated"},
    "reuse, monotone": {"cost": "reuse", "monotone": True},
    "forecast": {"cost": "forecast"},
    "forecast, monotone": {"cost": "forecast", "monotone": True},
}
COMPARED: Mapping[str, tuple[str, ...]] = {
    "residual": ("threshold walk", "reuse", "grouping", "integrated", "reuse, monotone"),
    "residual + K, B": ("threshold walk", "reuse"),
    "forecast": ("threshold walk", "reuse", "forecast", "forecast, monotone"),
}
"""Which schedules stand beside what: an edge cost is compared where it says what stands in."""
REFINED = {"forecast": "forecast"}
"""The planner whose plans are refined, with what stands in."""
SHARE = 0.2
"""How far lambda is moved."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row before it is run.

    Attributes:
        budget: Network calls of each branch that were asked for.
        stands_in: A name of `STANDS_IN`.
        name: A name of `SCHEDULES`, or what was done to one.
        policies: What runs.
        plan: What it will do.
    """

    budget: int
    stands_in: str
    name: str
    policies: tuple[Policy, ...]
    plan: Forecast


def candidate(
    budget: int, stands_in: str, name: str, policies: Sequence[Policy], steps: int
) -> Candidate:
    """A row, with its plan asked for."""
    return Candidate(budget, stands_in, name, tuple(policies), forecast(policies, steps))


def scheduled(name: str, calls: int, stands_in: str, profile: Profile) -> tuple[Policy, ...]:
    """A schedule and what stands in, on a profile."""
    options: dict[str, Any] = {"profile": PROFILE, "budget": {"calls": calls}, **SCHEDULES[name]}
    rule = "skip_policy" if name == "threshold walk" else "planned_schedule"
    specs: tuple[Spec, ...] = ({rule: options}, *STANDS_IN[stands_in])
    return tuple(placed(spec, profile) for spec in specs)


def candidates(profile: Profile, calls: Sequence[int], steps: int) -> list[Candidate]:
    """All rows but the refined ones."""
    return [
        candidate(number, stands_in, name, scheduled(name, number, stands_in, profile), steps)
        for number in calls
        for stands_in, names in COMPARED.items()
        for name in names
    ]


def refinements(
    setting: Setting, profile: Profile, calls: Sequence[int], trials: int, samples: int, seed: int
) -> tuple[list[Candidate], int]:
    """Refined plans, and the network calls of each branch and batch that they took."""
    found: list[Candidate] = []
    shared = ReplaySetting(
        sampler=lambda policies: setting.sampler(policies),
        model=setting.model,
        prompts=setting.calibration[:samples],
        seed=seed,
        batch=setting.batch_size,
    )
    if trials < 1:
        return found, 0
    replays = Replays.of(shared, setting.steps)
    for number in calls:
        for stands_in, name in REFINED.items():
            policies = scheduled(name, number, stands_in, profile)
            plan = forecast(policies, setting.steps)
            values, _ = replays.quality(policies, plan.calls)
            steps, _ = refined(replays, policies, plan.computed, float(values.mean()), trials)
            found.append(
                candidate(
                    number,
                    stands_in,
                    f"{name}, refined",
                    with_steps(policies, steps),
                    setting.steps,
                )
            )
    return found, replays.spent


def budgets_bench(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    trials: int = 8,
    refine_samples: int = 8,
    seed: int = 0,
    console: Console | None = None,
    command: str = "budgets",
) -> Bench:
    """Compare schedules at equal network calls.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch.
        trials: Moved steps that the refinement of each plan may try; 0 refines nothing.
        refine_samples: Calibration prompts that it replays.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_framework.bench.ablation.checked`.
    """
    checked(setting, calls, seed_sets=1)
    batches = -(-len(setting.held_out) // setting.batch_size)
    with Overall(setting.steps * (batches + 1), console) as bar:
        profile = calibrated(setting, bar, CALIBRATION_SEEDS + seed)
        bar.title(f"refining, at most {cost_of(calls, setting.steps, trials + 1)} calls")
        better, spent = refinements(
            setting, profile, calls, trials, refine_samples, CALIBRATION_SEEDS + seed
        )
        rows = candidates(profile, calls, setting.steps) + better
        found = measured(setting, sorted(rows, key=lambda row: -row.budget), seed, bar)
    facts = shared_settings(setting, seed, [profile])
    facts.update(refine_trials=trials, refine_samples=refine_samples, refine_calls=spent)
    return Bench(command, found, COLUMNS, facts, section="budget")


def measured(setting: Setting, rows: Sequence[Candidate], seed: int, bar: Overall) -> list[Row]:
    """The full run and every row; rows that run the same thing are run once."""
    branches = len(setting.guidance.names)

    def run(title: str, policies: Sequence[Policy]) -> tuple[Samples, float]:
        bar.title(title)
        start = time.process_time()
        sampler = setting.sampler(policies, callbacks=[bar])
        result = sampler.sample(setting.model, setting.held_out, seed=seed)
        return result, time.process_time() - start

    reference, processor = run("full", ())
    full = Outcome()
    full.add(reference, reference, processor, branches)
    common: dict[str, Value] = {"budget": None, "stands_in": "", "predicted": None, "steps": ""}
    found: list[Row] = [record("full", full, full, None, {**common, "same_as": None})]
    done: dict[tuple[str, tuple[int, ...]], tuple[str, Outcome]] = {}
    for row in rows:
        key = row.stands_in, row.plan.computed
        same = done[key][0] if key in done else None
        if same is None:
            result, processor = run(f"{row.budget}: {row.stands_in}, {row.name}", row.policies)
            outcome = Outcome()
            outcome.add(result, reference, processor, branches)
            done[key] = row.name, outcome
        facts: dict[str, Value] = {
            "budget": row.budget,
            "stands_in": row.stands_in,
            "predicted": row.plan.facts.get("predicted"),
            "threshold": row.plan.threshold,
            "steps": " ".join(map(str, row.plan.computed)),
            "same_as": same,
        }
        found.append(record(row.name, done[key][1], full, None, facts))
    return found


def lambda_bench(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    seed: int = 0,
    console: Console | None = None,
    command: str = "lambda",
) -> Bench:
    """ERTACache at the lambda solved for each budget, and at a fifth less and more.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_framework.bench.ablation.checked`.
    """
    checked(setting, calls, seed_sets=1)
    batches = -(-len(setting.held_out) // setting.batch_size)
    with Overall((setting.steps + 3 * sum(calls)) * batches + setting.steps, console) as bar:
        profile = calibrated(setting, bar, CALIBRATION_SEEDS + seed)
        rows: list[Candidate] = []
        for number in calls:
            spec: Spec = {"ertacache": {"profile": PROFILE, "budget": {"calls": number}}}
            solved = forecast([placed(spec, profile)], setting.steps).threshold
            assert solved is not None
            for name, factor in (("- 20 %", 1 - SHARE), ("solved", 1.0), ("+ 20 %", 1 + SHARE)):
                moved: Spec = {"ertacache": {"profile": PROFILE, "threshold": solved * factor}}
                policies = [placed(moved, profile)]
                rows.append(candidate(number, "residual + K, B", name, policies, setting.steps))
        found = measured(setting, rows, seed, bar)
    facts = shared_settings(setting, seed, [profile])
    return Bench(command, found, LAMBDA_COLUMNS, facts, section="budget")
