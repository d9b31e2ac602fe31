"""Schedules at equal network calls: the threshold walk, each planner, and refined plans.

Every row is compared with the full run and the exact solution of the same held-out prompts from the
same noise; profiles, plans and refinements see calibration prompts and noise alone. A second
benchmark moves lambda by a fifth up and down from the value that was solved for a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from erta_bench.budgets._candidates import (
    COMPARED,
    PREDICTORS,
    REFINED,
    Candidate,
    list_candidates,
    make_candidate,
    make_replays,
    refine_candidates,
)
from erta_bench.core import TWO_AXES, Bench, Measurement, Row, Value, make_record
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    PROFILE,
    Reference,
    RunProgress,
    Setting,
    Spec,
    build_policy,
    calibrate_residuals,
    describe_setting,
    require_measurable,
)
from erta_framework.budgets import count_replay_calls, forecast
from erta_framework.environment import describe_machine

COLUMNS = {
    "budget": "calls",
    "stands_in": "predictor",
    "name": "schedule",
    "calls": "made",
    "work": "work",
    "predicted": "predicted",
    **TWO_AXES,
    "same_as": "same as",
}
LAMBDA_COLUMNS = {
    "budget": "asked",
    "name": "lambda",
    "threshold": "value",
    "calls": "calls",
    "work": "work",
    **TWO_AXES,
}
LAMBDA_SHIFT = 0.2
"""The share by which lambda is moved down and up."""


def compare_schedules(
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
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
    """
    require_measurable(setting, calls, seed_sets=1)
    batches = setting.batches
    unique = dict.fromkeys(calls)
    rows = sum(map(len, COMPARED.values())) + len(REFINED)
    work = setting.steps * (batches + 2) + rows * batches * sum(unique)
    work += len(REFINED) * (count_replay_calls([*unique], setting.steps, trials) - setting.steps)
    done: list[int] = []
    with RunProgress(work, console) as bar:
        profile = calibrate_residuals(setting, bar, CALIBRATION_SEEDS + seed)
        facts = describe_setting(setting, seed, [profile])
        facts.update(refine_trials=trials, refine_samples=refine_samples)
        replays = (
            make_replays(setting, refine_samples, CALIBRATION_SEEDS + seed) if trials else None
        )
        table = ScheduleTable(Reference(setting, seed, bar))
        facts.update(table.full.describe())
        for number in unique:
            chosen = list_candidates(profile, number, setting.steps)
            if replays is not None:
                bar.set_title(f"{number}: refining")
                chosen += refine_candidates(replays, profile, number, setting.steps, trials)
                facts["refine_calls"] = replays.spent
                chosen.sort(key=lambda row: [*PREDICTORS].index(row.predictor))
            for row in chosen:
                table.add(row)
            done.append(number)
            spelled = " ".join(f"--calls {budget}" for budget in done)
            bench = Bench(
                f"{command} {spelled}",
                table.rows,
                COLUMNS,
                facts,
                section="budget",
                machine=describe_machine(setting.device),
            )
            keep(bench)
    return bench


@dataclass(slots=True)
class ScheduleTable:
    """Rows against one full run; what runs the same thing is run once.

    Attributes:
        full: The full run.
        rows: The records, that of the full run first.
        done: Name and outcome of what was run, by predictor and computed steps.
    """

    full: Reference
    rows: list[Row] = field(default_factory=list)
    done: dict[tuple[str, tuple[int, ...]], tuple[str, Measurement]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        outcome = self.full.outcome
        facts: dict[str, Value] = {"budget": None, "stands_in": "", "predicted": None}
        facts |= {"steps": "", "same_as": None}
        self.rows.append(make_record("full", outcome, outcome, None, facts))

    def add(self, row: Candidate) -> None:
        """Run a row, unless another ran the same thing."""
        key = row.predictor, row.plan.computed
        same = self.done[key][0] if key in self.done else None
        if same is None:
            title = f"{row.budget}: {row.predictor}, {row.name}"
            self.done[key] = row.name, self.full.measure(title, row.policies)[0]
        facts: dict[str, Value] = {
            "budget": row.budget,
            "stands_in": row.predictor,
            "predicted": row.plan.predicted,
            "threshold": row.plan.threshold,
            "steps": " ".join(map(str, row.plan.computed)),
            "same_as": same,
        }
        outcome = self.done[key][1]
        self.rows.append(make_record(row.name, outcome, self.full.outcome, None, facts))


def vary_lambda(
    setting: Setting,
    *,
    calls: Sequence[int] = (25, 17, 12),
    seed: int = 0,
    console: Console | None = None,
    command: str = "lambda",
) -> Bench:
    """Measure ERTACache at the lambda solved for each budget, and at a fifth less and more.

    Args:
        setting: Model, prompts and what else all rows share.
        calls: Network calls of each branch.
        seed: First seed.
        console: Where to show a progress bar; None shows none.
        command: Named in the result.

    Raises:
        InputError: What cannot be measured; see `erta_bench.setting.require_measurable`.
    """
    require_measurable(setting, calls, seed_sets=1)
    with RunProgress(
        (setting.steps + 3 * sum(calls)) * setting.batches + setting.steps, console
    ) as bar:
        profile = calibrate_residuals(setting, bar, CALIBRATION_SEEDS + seed)
        rows: list[Candidate] = []
        for number in calls:
            spec: Spec = {"ertacache": {"profile": PROFILE, "budget": {"calls": number}}}
            solved = forecast([build_policy(spec, profile)], setting.steps).threshold
            assert solved is not None
            for name, factor in (
                ("- 20 %", 1 - LAMBDA_SHIFT),
                ("solved", 1.0),
                ("+ 20 %", 1 + LAMBDA_SHIFT),
            ):
                moved: Spec = {"ertacache": {"profile": PROFILE, "threshold": solved * factor}}
                policies = [build_policy(moved, profile)]
                rows.append(
                    make_candidate(number, "residual + K, B", name, policies, setting.steps)
                )
        table = ScheduleTable(Reference(setting, seed, bar))
        for row in rows:
            table.add(row)
    facts = describe_setting(setting, seed, [profile]) | table.full.describe()
    machine = describe_machine(setting.device)
    return Bench(command, table.rows, LAMBDA_COLUMNS, facts, section="budget", machine=machine)
