"""The parts of the study of fitted reuse: what fitting is worth, which fit, and where it fails.

Every sample is compared with the full run and the exact solution of the same prompt from the same
noise. Fits are made on other prompts and other noise than those measured, on ERTACache's schedule
for the number of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from erta_bench.core import TWO_AXES, Bench, Row, Value
from erta_bench.fitted._study import Facts, Study, StudyTable
from erta_bench.setting import (
    CALIBRATION_SEEDS,
    choose_first_order_solver,
    describe_model,
    repeat_prompts,
    require_disjoint,
)
from erta_framework import CFG, FlowEuler, Policy, Profile
from erta_framework.calibration import check_substeps
from erta_framework.environment import describe_machine
from erta_framework.errors import InputError
from erta_framework.sampling import FlowAdamsBashforth2, resolve_device
from erta_policies.ertacache import ERTACache, ResidualReuse, SkipPolicy
from erta_policies.fitted import FittedProfiler
from erta_policies.forecast import Forecaster
from erta_policies.planning import MultistepSchedule, PlannedSchedule


def plan_ertacache_steps(study: Study, profile: Profile, budget: int) -> SkipPolicy:
    """ERTACache's schedule as a list of steps."""
    plan = SkipPolicy(profile=profile, calls=budget).plan(study.steps)
    return SkipPolicy(steps=plan.computed)


def study_calls(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Fits beside plain solvers, ERTACache, and ERTACache's schedule under a Taylor forecast."""
    profile, table = study.residuals(), StudyTable.of(study, "calls")
    flow = isinstance(choose_first_order_solver(study.model), FlowEuler)
    for budget in budgets:
        facts: Facts = {"budget": budget, "part": "calls"}
        schedule = plan_ertacache_steps(study, profile, budget)
        plain = study.make_sampler(steps=budget)
        table.add("plain Euler" if flow else "plain DDIM", "plain", plain, facts)
        if flow:
            second = study.make_sampler(steps=budget, solver=FlowAdamsBashforth2())
            table.add("plain Adams-Bashforth 2", "plain", second, facts)
        ours = ERTACache(profile=profile, calls=budget)
        table.add("ertacache", "peer", study.make_sampler([ours]), facts)
        taylor = study.make_sampler([schedule, Forecaster()])
        name = "ERTACache's schedule, Taylor 1"
        base = table.add(name, "composed", taylor, facts)
        found = study.fit(FittedProfiler(schedule=schedule))
        table.add_fit("fitted", found, base, facts)
    return table.rows


def study_schedules(study: Study, budgets: Sequence[int]) -> list[Row]:
    """The same fit on schedules of the same number of calls, planned in other ways."""
    profile, table = study.residuals(), StudyTable.of(study, "schedules")
    for budget in budgets:
        facts: Facts = {"budget": budget, "part": "schedules"}
        walked = plan_ertacache_steps(study, profile, budget)
        schedules: dict[str, Policy] = {"ERTACache's": walked, "even": SkipPolicy(evenly=budget)}
        for cost in ("forecast", "integrated"):
            plan = PlannedSchedule(profile=profile, budget={"calls": budget}, cost=cost)
            schedules[f"planned, cost {cost}"] = SkipPolicy(steps=plan.plan(study.steps).computed)
        several = MultistepSchedule(profile=profile, budget={"calls": budget})
        schedules["multistep plan"] = SkipPolicy(steps=several.plan(study.steps).computed)
        for name, schedule in schedules.items():
            taylor = study.make_sampler([schedule, Forecaster()])
            base = table.add(f"{name}: Taylor 1", "composed", taylor, facts)
            found = study.fit(FittedProfiler(schedule=schedule))
            table.add_fit(f"{name}: fitted", found, base, facts)
    return table.rows


CHOICES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    **{f"velocities: {n}": {"velocities": n} for n in (1, 2, 3, 6)},
    "without latents": {"latent": False},
    "with displacement": {"displacement": True},
    "local target": {"target": 0.0},
    "half local, half trajectory": {"target": 0.5},
    "reused steps only": {"computed": False},
    "a weight each channel": {"granularity": "channel"},
    "ridge 0.01": {"ridge": 1e-2},
    "ridge 0.01 toward the newest velocity": {"ridge": 1e-2, "toward": "velocity"},
    "ridge 1e-06": {"ridge": 1e-6},
}


def study_choices(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Every open choice of the fit, one changed at a time, at the first number of calls."""
    profile, table = study.residuals(), StudyTable.of(study, "choices")
    facts: Facts = {"budget": budgets[0], "part": "choices"}
    schedule = plan_ertacache_steps(study, profile, budgets[0])
    taylor = study.make_sampler([schedule, Forecaster()])
    base = table.add("ERTACache's schedule, Taylor 1", "composed", taylor, facts)
    for name, changed in CHOICES.items():
        found = study.fit(FittedProfiler(schedule=schedule, **changed))
        table.add_fit(name, found, base, facts)
    even = FittedProfiler(schedule=SkipPolicy(evenly=budgets[0]))
    table.add_fit("as shipped, even schedule", study.fit(even), base, facts)
    return table.rows


def study_samples(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Fits to fewer and more samples, and to small batches that are added up."""
    profile, table = study.residuals(), StudyTable.of(study, "samples")
    facts: Facts = {"budget": budgets[0], "part": "samples"}
    schedule = plan_ertacache_steps(study, profile, budgets[0])
    taylor = study.make_sampler([schedule, Forecaster()])
    base = table.add("ERTACache's schedule, Taylor 1", "composed", taylor, facts)
    for samples in (n for n in (4, 8, 16, 32, 64) if n <= 4 * study.samples):
        found = study.fit(FittedProfiler(schedule=schedule), samples)
        table.add_fit(f"{samples} in one batch", found, base, facts)
    prompts, apart = repeat_prompts(study.calibration, 16), study.make_sampler(batch=4)
    profiler = FittedProfiler(schedule=schedule)
    judged = apart.calibrate(study.model, prompts, seed=CALIBRATION_SEEDS, profiler=profiler)
    table.add_fit("16 in batches of 4", judged, base, facts)
    return table.rows


def study_robustness(study: Study, budgets: Sequence[int]) -> list[Row]:
    """A fit on some colours at one guidance scale, measured on other colours and scales."""
    known = [p for p in study.calibration if p.split()[1] in ("red", "green", "blue")]
    everything = [*study.calibration, *study.held_out]
    same = [p for p in study.held_out if p.split()[1] in ("red", "green", "blue")]
    unseen = [p for p in everything if p.split()[1] not in ("red", "green", "blue")]
    if not known or not same or not unseen:
        raise InputError("the part `robust` needs prompts such as 'a red circle moving left'")
    study = replace(study, calibration=known)
    profile, rows = study.residuals(), []
    schedule = plan_ertacache_steps(study, profile, budgets[0])
    found = study.fit(FittedProfiler(schedule=schedule))
    for where, prompts, scale in (
        ("same colours, guidance 3", same, 3.0),
        ("unseen colours, guidance 3", unseen, 3.0),
        ("all colours, guidance 1.5", study.held_out, 1.5),
        ("all colours, guidance 6", study.held_out, 6.0),
    ):
        table = StudyTable.of(replace(study, held_out=prompts, scale=scale), "robust", where)
        facts: Facts = {"budget": budgets[0], "part": "robust", "where": where}
        make_sampler = table.study.make_sampler
        ours = ERTACache(profile=profile, calls=budgets[0], allow=("guidance",))
        table.add(f"{where}: ertacache", "peer", make_sampler([ours]), facts)
        taylor = make_sampler([schedule, Forecaster()])
        base = table.add(f"{where}: Taylor 1", "composed", taylor, facts)
        table.add_fit(f"{where}: fitted", found, base, facts)
        rows += table.rows
    return rows


def study_solvers(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Other numbers of steps, and a solver with memory, each with a fit of its own."""
    if not isinstance(choose_first_order_solver(study.model), FlowEuler):
        raise InputError("the part `solvers` needs a model that predicts a velocity")
    rows: list[Row] = []
    for steps, name, solver in (
        (20, "Euler", FlowEuler()),
        (30, "Euler", FlowEuler()),
        (study.steps, "Adams-Bashforth 2", FlowAdamsBashforth2()),
    ):
        own = replace(study, steps=steps, solver=solver)
        calls, where = max(2, round(budgets[0] / study.steps * steps)), f"{steps} steps, {name}"
        profile, table = own.residuals(), StudyTable.of(own, "solvers", where)
        facts: Facts = {"budget": calls, "part": "solvers", "where": where}
        schedule = plan_ertacache_steps(own, profile, calls)
        residual = own.make_sampler([schedule, ResidualReuse()])
        table.add(f"{where}: residual reuse", "composed", residual, facts)
        taylor = own.make_sampler([schedule, Forecaster()])
        base = table.add(f"{where}: Taylor 1", "composed", taylor, facts)
        found = own.fit(FittedProfiler(schedule=schedule))
        table.add_fit(f"{where}: fitted", found, base, facts)
        rows += table.rows
    return rows


STUDIES = {
    "calls": study_calls,
    "schedules": study_schedules,
    "choices": study_choices,
    "samples": study_samples,
    "robust": study_robustness,
    "solvers": study_solvers,
}
COLUMNS = {
    "budget": "calls",
    "name": "",
    "kind": "kind",
    "calls": "made",
    **TWO_AXES,
    "psnr_worst": "worst",
    "gain_mean": "gain",
    "fitted_error": "calibration RMSE",
}


@torch.no_grad()
def run_study(
    study: Study, parts: Sequence[str], budgets: Sequence[int], middle: int, command: str
) -> Bench:
    """Run parts of the study.

    Args:
        study: What all rows share.
        parts: Some of `STUDIES`.
        budgets: Network calls of each branch, for the parts `calls` and `schedules`.
        middle: Network calls in the other parts.
        command: Named in the result.

    Raises:
        InputError: An unknown part, or calibration and measured prompts overlap.
    """
    unknown = [part for part in parts if part not in STUDIES]
    if unknown:
        raise InputError(f"unknown part {unknown[0]!r}; the parts are {', '.join(STUDIES)}")
    require_disjoint(study.calibration, study.held_out)
    check_substeps(study.substeps)
    rows: list[Row] = []
    for part in parts:
        rows += STUDIES[part](study, budgets if part in ("calls", "schedules") else [middle])
    settings: dict[str, Value] = {
        **describe_model(study.model),
        "guidance": repr(CFG(scale=study.scale)),
        "steps": study.steps,
        "fitted_samples": study.samples,
        "measured": study.measured,
        "solution_substeps": study.substeps,
    }
    machine = describe_machine(resolve_device(study.accelerator, 1))
    return Bench(command, rows, COLUMNS, settings, section="part", machine=machine)
