"""`erta bench fitted`: what fitting is worth, which fit, and where it stops holding.

Every sample is compared with the full run of the same prompt from the same noise. Fits are made on
other prompts and other noise than those measured, on ERTACache's schedule for the number of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from erta_bench.core.cli import demo_prompts
from erta_bench.core.report import Bench, Row, Value
from erta_framework import CFG, FlowEuler, Policy, Profile, Sampler
from erta_framework.errors import InputError
from erta_framework.metrics import psnr
from erta_framework.plugins import models
from erta_framework.sampling import DDIM, FlowAdamsBashforth2, Solver, TextModel
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.ertacache import ERTACache, ResidualProfiler, ResidualReuse, SkipPolicy
from erta_policies.fitted import FittedProfiler, FittedReuse, FittedTable
from erta_policies.forecast import Forecaster
from erta_policies.planning import MultistepSchedule, PlannedSchedule

Facts = dict[str, Value]
PARTS = ("calls", "schedules", "choices", "samples", "robust", "solvers")
SEED = 1_000_000
"""Where the seeds of calibration start, above those that are measured."""
COLUMNS = {
    "budget": "calls",
    "name": "",
    "kind": "kind",
    "calls": "made",
    "psnr_mean": "PSNR",
    "psnr_std": "std",
    "psnr_worst": "worst",
    "gain_mean": "gain",
    "fitted_error": "calibration RMSE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all rows share.

    Attributes:
        model: The model.
        calibration: Prompts to fit on, repeated as often as samples are asked for.
        held_out: Prompts that are measured.
        measured: How many samples are measured.
        samples: How many samples a fit has.
        steps: Steps of the full run.
        scale: Guidance scale.
        solver: Solver of all rows; by default the first-order one of what the model predicts.
        console: Where progress is told.
    """

    model: TextModel
    calibration: Sequence[str]
    held_out: Sequence[str]
    measured: int = 32
    samples: int = 16
    steps: int = 50
    scale: float = 3.0
    solver: Solver | None = None
    console: Console | None = None

    def sampler(
        self,
        policies: Sequence[Policy] = (),
        *,
        steps: int | None = None,
        solver: Solver | None = None,
        batch: int = 16,
    ) -> Sampler:
        """A sampler of this study with these policies."""
        return Sampler(
            policies,
            solver=solver or self.solver or first_order(self.model),
            guidance=CFG(scale=self.scale),
            num_steps=steps or self.steps,
            batch_size=batch,
        )

    def sample(self, sampler: Sampler) -> tuple[Tensor, float]:
        """The measured samples, and network calls of each branch."""
        found = sampler.sample(self.model, repeated(self.held_out, self.measured), seed=0)
        branches = len(sampler.guidance.names)
        return found.samples, found.network_calls / (branches * len(found.traces))

    def residuals(self) -> Profile:
        """The residual profile that ERTACache's schedule is planned from."""
        self.say("calibrating ERTACache")
        prompts = repeated(self.calibration, 16)
        sampler = self.sampler()
        return sampler.calibrate(self.model, prompts, seed=SEED, profiler=ResidualProfiler())

    def fit(self, profiler: FittedProfiler, samples: int | None = None) -> Profile:
        """A fit, in one batch."""
        count = samples or self.samples
        prompts = repeated(self.calibration, count)
        sampler = self.sampler(batch=count)
        return sampler.calibrate(self.model, prompts, seed=SEED, profiler=profiler)

    def say(self, text: str) -> None:
        """Tell what runs."""
        if self.console is not None:
            self.console.print(text, highlight=False)


def opened(name: str) -> tuple[TextModel, list[str], list[str]]:
    """A model with its prompts to calibrate on and its held-out prompts.

    Raises:
        InputError: The model has no prompts of its own.
    """
    if name == "mixture":
        prompts = [
            f"a {color} {shape} moving {direction}"
            for direction in ("left", "right", "up", "down")
            for shape in ("circle", "square", "triangle")
            for color in ("red", "yellow", "green", "white", "blue", "black")
        ]
        return GaussianMixtureFlow(), prompts[:24], prompts[24:]
    model = models().load(name)()
    calibration, _ = demo_prompts(model, name, 1)
    return model, calibration, list(model.demo_prompts()[1])


def first_order(model: TextModel) -> Solver:
    """The first-order solver of what a model predicts."""
    return DDIM() if getattr(model, "prediction", "velocity") == "epsilon" else FlowEuler()


def repeated(prompts: Sequence[str], count: int) -> list[str]:
    """That many prompts, from the start again where there are too few."""
    return [prompts[k % len(prompts)] for k in range(count)]


@dataclass(slots=True)
class Measured:
    """Rows of one study and what they are compared with."""

    study: Study
    rows: list[Row]
    reference: Tensor

    @classmethod
    def of(cls, study: Study) -> Measured:
        """Run the full trajectory of the measured samples."""
        study.say("full run")
        return cls(study, [], study.sample(study.sampler())[0])

    def add(
        self,
        name: str,
        kind: str,
        sampler: Sampler,
        facts: Facts,
        base: Tensor | None = None,
    ) -> Tensor:
        """Measure one row; its PSNR a sample."""
        self.study.say(name)
        samples, calls = self.study.sample(sampler)
        quality = psnr(samples, self.reference)
        gain = None if base is None else (quality - base).mean().item()
        self.rows.append(
            {
                "name": name,
                "kind": kind,
                "calls": int(calls) if calls.is_integer() else calls,
                "psnr_mean": quality.mean().item(),
                "psnr_std": quality.std(correction=0).item(),
                "psnr_worst": quality.min().item(),
                "gain_mean": gain,
                "samples": len(quality),
                **facts,
            }
        )
        return quality

    def fitted(self, name: str, profile: Profile, base: Tensor, facts: Facts) -> None:
        """Measure a fit, with its error on its own calibration samples."""
        table = FittedTable.of(profile)
        self.add(
            name,
            "ours",
            self.study.sampler([FittedReuse(profile=profile, allow=("guidance",))]),
            {
                **facts,
                "fitted_samples": profile.samples,
                "fitted_error": table.errors["fitted"] ** 0.5,
                "taylor_error": table.errors["taylor"] ** 0.5,
                "plain_error": table.errors["plain"] ** 0.5,
                "kept": table.kept,
            },
            base,
        )


def planned(study: Study, profile: Profile, budget: int) -> SkipPolicy:
    """ERTACache's schedule as a list of steps."""
    plan = SkipPolicy(profile=profile, calls=budget).plan(study.steps)
    return SkipPolicy(steps=plan.computed)


def by_calls(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Fits beside plain solvers, ERTACache, and ERTACache's schedule under a Taylor forecast."""
    profile, measured = study.residuals(), Measured.of(study)
    flow = isinstance(first_order(study.model), FlowEuler)
    for budget in budgets:
        facts: Facts = {"budget": budget, "part": "calls"}
        schedule = planned(study, profile, budget)
        plain = study.sampler(steps=budget)
        measured.add("plain Euler" if flow else "plain DDIM", "plain", plain, facts)
        if flow:
            second = study.sampler(steps=budget, solver=FlowAdamsBashforth2())
            measured.add("plain Adams-Bashforth 2", "plain", second, facts)
        ours = ERTACache(profile=profile, calls=budget)
        measured.add("ertacache", "peer", study.sampler([ours]), facts)
        taylor = study.sampler([schedule, Forecaster()])
        name = "ERTACache's schedule, Taylor 1"
        base = measured.add(name, "composed", taylor, facts)
        found = study.fit(FittedProfiler(schedule=schedule))
        measured.fitted("fitted", found, base, facts)
    return measured.rows


def by_schedule(study: Study, budgets: Sequence[int]) -> list[Row]:
    """The same fit on schedules of the same number of calls, planned in other ways."""
    profile, measured = study.residuals(), Measured.of(study)
    for budget in budgets:
        facts: Facts = {"budget": budget, "part": "schedules"}
        walked = planned(study, profile, budget)
        schedules: dict[str, Policy] = {"ERTACache's": walked, "even": SkipPolicy(evenly=budget)}
        for cost in ("forecast", "integrated"):
            plan = PlannedSchedule(profile=profile, budget={"calls": budget}, cost=cost)
            schedules[f"planned, cost {cost}"] = SkipPolicy(steps=plan.plan(study.steps).computed)
        several = MultistepSchedule(profile=profile, budget={"calls": budget})
        schedules["multistep plan"] = SkipPolicy(steps=several.plan(study.steps).computed)
        for name, schedule in schedules.items():
            taylor = study.sampler([schedule, Forecaster()])
            base = measured.add(f"{name}: Taylor 1", "composed", taylor, facts)
            found = study.fit(FittedProfiler(schedule=schedule))
            measured.fitted(f"{name}: fitted", found, base, facts)
    return measured.rows


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


def by_choice(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Every open choice of the fit, one changed at a time, at the first number of calls."""
    profile, measured = study.residuals(), Measured.of(study)
    facts: Facts = {"budget": budgets[0], "part": "choices"}
    schedule = planned(study, profile, budgets[0])
    taylor = study.sampler([schedule, Forecaster()])
    base = measured.add("ERTACache's schedule, Taylor 1", "composed", taylor, facts)
    for name, changed in CHOICES.items():
        found = study.fit(FittedProfiler(schedule=schedule, **changed))
        measured.fitted(name, found, base, facts)
    even = FittedProfiler(schedule=SkipPolicy(evenly=budgets[0]))
    measured.fitted("as shipped, even schedule", study.fit(even), base, facts)
    return measured.rows


def by_samples(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Calibration samples, to four times the study's, and small batches added up and judged."""
    profile, measured = study.residuals(), Measured.of(study)
    facts: Facts = {"budget": budgets[0], "part": "samples"}
    schedule = planned(study, profile, budgets[0])
    taylor = study.sampler([schedule, Forecaster()])
    base = measured.add("ERTACache's schedule, Taylor 1", "composed", taylor, facts)
    for samples in (n for n in (4, 8, 16, 32, 64) if n <= 4 * study.samples):
        found = study.fit(FittedProfiler(schedule=schedule), samples)
        measured.fitted(f"{samples} in one batch", found, base, facts)
    prompts, apart = repeated(study.calibration, 16), study.sampler(batch=4)
    profiler = FittedProfiler(schedule=schedule)
    judged = apart.calibrate(study.model, prompts, seed=SEED, profiler=profiler)
    measured.fitted("16 in batches of 4", judged, base, facts)
    return measured.rows


def by_distance(study: Study, budgets: Sequence[int]) -> list[Row]:
    """A fit on some colours at one guidance scale, on what it has not seen."""
    known = [p for p in study.calibration if p.split()[1] in ("red", "green", "blue")]
    everything = [*study.calibration, *study.held_out]
    same = [p for p in study.held_out if p.split()[1] in ("red", "green", "blue")]
    unseen = [p for p in everything if p.split()[1] not in ("red", "green", "blue")]
    if not known or not same or not unseen:
        raise InputError("the part `robust` needs prompts such as 'a red circle moving left'")
    study = replace(study, calibration=known)
    profile, rows = study.residuals(), []
    schedule = planned(study, profile, budgets[0])
    found = study.fit(FittedProfiler(schedule=schedule))
    for where, prompts, scale in (
        ("same colours, guidance 3", same, 3.0),
        ("unseen colours, guidance 3", unseen, 3.0),
        ("all colours, guidance 1.5", study.held_out, 1.5),
        ("all colours, guidance 6", study.held_out, 6.0),
    ):
        measured = Measured.of(replace(study, held_out=prompts, scale=scale))
        facts: Facts = {"budget": budgets[0], "part": "robust", "where": where}
        sampler = measured.study.sampler
        ours = ERTACache(profile=profile, calls=budgets[0], allow=("guidance",))
        measured.add(f"{where}: ertacache", "peer", sampler([ours]), facts)
        taylor = sampler([schedule, Forecaster()])
        base = measured.add(f"{where}: Taylor 1", "composed", taylor, facts)
        measured.fitted(f"{where}: fitted", found, base, facts)
        rows += measured.rows
    return rows


def by_solver(study: Study, budgets: Sequence[int]) -> list[Row]:
    """Other numbers of steps, and a solver with memory, each with a fit of its own."""
    if not isinstance(first_order(study.model), FlowEuler):
        raise InputError("the part `solvers` needs a model that predicts a velocity")
    rows: list[Row] = []
    for steps, name, solver in (
        (20, "Euler", FlowEuler()),
        (30, "Euler", FlowEuler()),
        (study.steps, "Adams-Bashforth 2", FlowAdamsBashforth2()),
    ):
        own = replace(study, steps=steps, solver=solver)
        calls, where = max(2, round(budgets[0] / study.steps * steps)), f"{steps} steps, {name}"
        profile, measured = own.residuals(), Measured.of(own)
        facts: Facts = {"budget": calls, "part": "solvers", "where": where}
        schedule = planned(own, profile, calls)
        residual = own.sampler([schedule, ResidualReuse()])
        measured.add(f"{where}: residual reuse", "composed", residual, facts)
        taylor = own.sampler([schedule, Forecaster()])
        base = measured.add(f"{where}: Taylor 1", "composed", taylor, facts)
        found = own.fit(FittedProfiler(schedule=schedule))
        measured.fitted(f"{where}: fitted", found, base, facts)
        rows += measured.rows
    return rows


STUDIES = {
    "calls": by_calls,
    "schedules": by_schedule,
    "choices": by_choice,
    "samples": by_samples,
    "robust": by_distance,
    "solvers": by_solver,
}


@torch.no_grad()
def study_of(
    study: Study, parts: Sequence[str], budgets: Sequence[int], middle: int, command: str
) -> Bench:
    """Run parts of the study.

    Args:
        study: What all rows share.
        parts: Some of `PARTS`.
        budgets: Network calls of each branch, for the parts `calls` and `schedules`.
        middle: Network calls in the other parts.
        command: Named in the result.

    Raises:
        InputError: An unknown part, or calibration and measured prompts overlap.
    """
    unknown = [part for part in parts if part not in STUDIES]
    if unknown:
        raise InputError(f"unknown part {unknown[0]!r}; the parts are {', '.join(STUDIES)}")
    common = sorted(set(study.calibration) & set(study.held_out))
    if common:
        raise InputError(f"the prompt {common[0]!r} is calibrated on and measured; keep them apart")
    rows: list[Row] = []
    for part in parts:
        rows += STUDIES[part](study, budgets if part in ("calls", "schedules") else [middle])
    settings: dict[str, Value] = {
        **{f"model.{key}": value for key, value in study.model.fingerprint().items()},
        "guidance": repr(CFG(scale=study.scale)),
        "steps": study.steps,
        "fitted_samples": study.samples,
        "measured": study.measured,
    }
    return Bench(command, rows, COLUMNS, settings, section="part")
