"""Schedules at equal network calls: the threshold walk, each planner, and refined plans.

Every row is compared with the full run of the same held-out prompts from the same noise; profiles,
plans and refinements see calibration prompts and noise alone. A second benchmark moves lambda by a
fifth up and down from the value that was solved for a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from erta_bench.core.ablation import (
    CALIBRATION_SEEDS,
    Overall,
    Setting,
    calibrated,
    checked,
    shared_settings,
)
from erta_bench.core.outcome import Outcome, record
from erta_bench.core.report import Bench, Row, Value
from erta_bench.core.variants import PROFILE, Spec, placed
from erta_framework.budgets import (
    Replays,
    ReplaySetting,
    StepSchedule,
    count_replay_calls,
    forecast,
    with_steps,
)
from erta_framework.calibration import Profile
from erta_framework.plugins import Policy
from erta_framework.sampling import Samples

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
"""Which schedules stand beside what: an edge cost is compared where it says what stands in."""
REFINED: Mapping[str, str] = {
    "residual": "reuse",
    "residual + K, B": "corrected",
    "forecast": "forecast",
}
"""The schedule whose plans are refined beside each of what stands in, by replays with it."""
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
    plan: StepSchedule


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


def candidates(profile: Profile, number: int, steps: int) -> list[Candidate]:
    """The rows of one number of calls, but for the refined ones."""
    return [
        candidate(number, stands_in, name, scheduled(name, number, stands_in, profile), steps)
        for stands_in, names in COMPARED.items()
        for name in names
    ]


def replays_of(setting: Setting, samples: int, seed: int) -> Replays:
    """Replays on so many calibration prompts, against a full run of their own."""
    shared = ReplaySetting(
        sampler=setting.sampler,
        model=setting.model,
        prompts=setting.calibration[:samples],
        seed=seed,
        batch=setting.batch_size,
    )
    return Replays.of(shared, setting.steps)


def refinements(
    replays: Replays, profile: Profile, number: int, steps: int, trials: int
) -> list[Candidate]:
    """Refined plans of one number of calls."""
    found = []
    for stands_in, name in REFINED.items():
        policies = scheduled(name, number, stands_in, profile)
        plan = forecast(policies, steps)
        values, _ = replays.measure_quality(policies, plan.calls)
        better, _ = replays.refine_steps(policies, plan.computed, float(values.mean()), trials)
        moved = with_steps(policies, better)
        found.append(candidate(number, stands_in, f"{name}, refined", moved, steps))
    return found


def budgets_bench(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    trials: int = 8,
    refine_samples: int = 8,
    seed: int = 0,
    console: Console | None = None,
    command: str = "budgets",
    keep: Callable[[Bench], object] = lambda bench: None,
) -> Bench:
    """Compare schedules at equal network calls.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch.
        trials: Moved steps that the refinement of each plan may try; 0 refines nothing.
        refine_samples: Calibration prompts that it replays.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result, followed by the numbers of calls that it holds.
        keep: Given the benchmark so far after each number of calls.

    Raises:
        InputError: What cannot be measured; see `erta_bench.core.ablation.checked`.
    """
    checked(setting, calls, seed_sets=1)
    batches = -(-len(setting.held_out) // setting.batch_size)
    unique = dict.fromkeys(calls)
    rows = sum(map(len, COMPARED.values())) + len(REFINED)
    work = setting.steps * (batches + 2) + rows * batches * sum(unique)
    work += len(REFINED) * (count_replay_calls([*unique], setting.steps, trials) - setting.steps)
    done: list[int] = []
    with Overall(work, console) as bar:
        profile = calibrated(setting, bar, CALIBRATION_SEEDS + seed)
        facts = shared_settings(setting, seed, [profile])
        facts.update(refine_trials=trials, refine_samples=refine_samples)
        replays = replays_of(setting, refine_samples, CALIBRATION_SEEDS + seed) if trials else None
        table = Measured.of(setting, seed, bar)
        for number in unique:
            chosen = candidates(profile, number, setting.steps)
            if replays is not None:
                bar.title(f"{number}: refining")
                chosen += refinements(replays, profile, number, setting.steps, trials)
                facts["refine_calls"] = replays.spent
                chosen.sort(key=lambda row: [*STANDS_IN].index(row.stands_in))
            for row in chosen:
                table.add(row)
            done.append(number)
            spelled = " ".join(f"--calls {budget}" for budget in done)
            bench = Bench(f"{command} {spelled}", table.rows, COLUMNS, facts, section="budget")
            keep(bench)
    return bench


@dataclass(slots=True)
class Measured:
    """Rows against one full run; what runs the same thing is run once."""

    setting: Setting
    seed: int
    bar: Overall
    reference: Samples
    full: Outcome
    rows: list[Row]
    done: dict[tuple[str, tuple[int, ...]], tuple[str, Outcome]]

    @classmethod
    def of(cls, setting: Setting, seed: int, bar: Overall) -> Measured:
        """With the full run made."""
        bar.title("full")
        start = time.process_time()
        sampler = setting.sampler(callbacks=[bar])
        reference = sampler.sample(setting.model, setting.held_out, seed=seed)
        full = Outcome()
        branches = len(setting.guidance.names)
        full.add(reference, reference, time.process_time() - start, branches)
        facts: dict[str, Value] = {"budget": None, "stands_in": "", "predicted": None}
        row = record("full", full, full, None, {**facts, "steps": "", "same_as": None})
        return cls(setting, seed, bar, reference, full, [row], {})

    def add(self, row: Candidate) -> None:
        """Run a row, unless another ran the same thing."""
        key = row.stands_in, row.plan.computed
        same = self.done[key][0] if key in self.done else None
        if same is None:
            self.done[key] = row.name, self._run(row)
        facts: dict[str, Value] = {
            "budget": row.budget,
            "stands_in": row.stands_in,
            "predicted": row.plan.predicted,
            "threshold": row.plan.threshold,
            "steps": " ".join(map(str, row.plan.computed)),
            "same_as": same,
        }
        self.rows.append(record(row.name, self.done[key][1], self.full, None, facts))

    def _run(self, row: Candidate) -> Outcome:
        self.bar.title(f"{row.budget}: {row.stands_in}, {row.name}")
        start = time.process_time()
        sampler = self.setting.sampler(row.policies, callbacks=[self.bar])
        result = sampler.sample(self.setting.model, self.setting.held_out, seed=self.seed)
        outcome = Outcome()
        branches = len(self.setting.guidance.names)
        outcome.add(result, self.reference, time.process_time() - start, branches)
        return outcome


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
        InputError: What cannot be measured; see `erta_bench.core.ablation.checked`.
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
        table = Measured.of(setting, seed, bar)
        for row in rows:
            table.add(row)
    facts = shared_settings(setting, seed, [profile])
    return Bench(command, table.rows, LAMBDA_COLUMNS, facts, section="budget")
