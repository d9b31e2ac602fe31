"""N calls asked are N calls made, by every planner, for every N and number of steps."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from erta_framework import CFG, Engine, FlowEuler, Policy, Profile, Request, SamplingLoop
from erta_framework.budgets import StepSchedule, forecast
from erta_framework.errors import ProfileError
from erta_framework.sampling import sample_noise
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.ertacache import ERTACache, ResidualProfiler, SkipPolicy
from erta_policies.ertacache._schedule import solve_threshold
from erta_policies.meancache import MeanCacheProfiler, MeanCacheSchedule
from erta_policies.planning import MultistepSchedule, PlannedSchedule, plan_steps
from erta_policies.taylorseer import FORA, HiCache, RefreshInterval, TaylorSeer

SHAPE = (2, 2, 2)
COUNTINGS = ("release", "diffusers", "cache-dit", "fora")
patient = settings(max_examples=40, deadline=None)


def run(policies: list[Policy], steps: int) -> tuple[int, int]:
    """Computed steps and network calls of a guided run."""
    flow, solver = GaussianMixtureFlow(SHAPE), FlowEuler()
    asked = Request(
        latents=sample_noise(SHAPE, [0]),
        cond=flow.encode(["a"]),
        uncond=flow.encode([""]),
        schedule=solver.schedule(steps),
        model=flow.fingerprint(),
    )
    result = SamplingLoop(Engine(policies), solver, CFG(scale=2.0)).run(flow, asked)
    assert flow.calls == result.trace.network_calls
    return len(result.trace.computed_steps), flow.calls


@cache
def profile_of(kind: str, steps: int) -> Profile:
    profiler = ResidualProfiler() if kind == "residual" else MeanCacheProfiler(longest=steps)
    flow, solver = GaussianMixtureFlow(SHAPE), FlowEuler()
    asked = Request(
        latents=sample_noise(SHAPE, [5, 6]),
        cond=flow.encode(["a", "b"]),
        uncond=flow.encode(["", ""]),
        schedule=solver.schedule(steps),
        model=flow.fingerprint(),
    )
    loop = SamplingLoop(Engine([profiler]), solver, CFG(scale=2.0))
    return loop.run(flow, asked).emitted[0]


def make_planners(steps: int, calls: int) -> list[Policy]:
    residual = profile_of("residual", steps)
    budget = {"calls": calls}
    return [
        SkipPolicy(evenly=calls),
        SkipPolicy(profile=residual, calls=calls),
        SkipPolicy(profile=residual, budget=budget),
        ERTACache(profile=residual, budget=budget),
        *(
            PlannedSchedule(profile=residual, budget=budget, cost=cost)
            for cost in ("reuse", "grouping", "integrated", "corrected", "forecast")
        ),
        MultistepSchedule(profile=residual, budget=budget),
        MeanCacheSchedule(profile=profile_of("mean", steps), calls=calls),
    ]


@patient
@given(steps=st.integers(3, 14), data=st.data())
def test_planners_make_the_calls_that_were_asked(steps: int, data: st.DataObject) -> None:
    calls = data.draw(st.integers(2, steps), label="calls")
    planners = make_planners(steps, calls)
    for policy in planners:
        assert forecast([policy], steps).calls == calls, policy
    chosen = data.draw(st.sampled_from(planners), label="the one that runs")
    assert run([chosen], steps) == (calls, 2 * calls)


@patient
@given(steps=st.integers(3, 12), data=st.data())
def test_a_listed_plan_makes_its_calls_and_no_more(steps: int, data: st.DataObject) -> None:
    calls = data.draw(st.integers(2, steps))
    for policy in make_planners(steps, calls):
        computed = forecast([policy], steps).computed
        listed = SkipPolicy(steps=computed)
        assert listed.plan(steps).computed == computed
    assert run([listed], steps) == (calls, 2 * calls)
    planned = plan_steps(profile_of("residual", steps), calls)
    assert len(planned) == SkipPolicy(steps=planned).plan(steps).calls == calls


@settings(max_examples=300, deadline=None)
@given(
    steps=st.integers(1, 120),
    first=st.integers(1, 6),
    counting=st.sampled_from((*COUNTINGS, "even")),
    data=st.data(),
)
def test_a_refresh_budget_is_met_exactly(
    steps: int, first: int, counting: str, data: st.DataObject
) -> None:
    calls = data.draw(st.integers(1, steps))
    policy = RefreshInterval(budget={"calls": calls}, first=first, counting=counting)  # type: ignore[arg-type]
    forced = RefreshInterval(interval=1000, first=first, counting=counting)  # type: ignore[arg-type]
    least = forced.plan(steps).calls
    if calls < least:
        with pytest.raises(ProfileError, match=f"at least {least} are forced"):
            policy.plan(steps)
        return
    plan = policy.plan(steps)
    assert plan.calls == calls
    assert {*range(min(first, steps))} <= {*plan.computed}
    gaps = [b - a for a, b in zip(plan.computed[first:], plan.computed[first + 1 :], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1  # as even as whole steps allow
    if counting == "even" and first == 1:
        assert plan.computed == SkipPolicy(evenly=calls).plan(steps).computed


@settings(max_examples=200, deadline=None)
@given(
    steps=st.integers(2, 100),
    first=st.integers(1, 5),
    interval=st.integers(1, 12),
    counting=st.sampled_from(COUNTINGS),
)
def test_a_published_interval_stays_the_plan_of_its_calls(
    steps: int, first: int, interval: int, counting: str
) -> None:
    """Where a whole interval makes so many calls, the shortest one is taken, as published."""
    published = RefreshInterval(interval=interval, first=first, counting=counting)  # type: ignore[arg-type]
    plan = published.plan(steps)
    shorter = RefreshInterval(interval=max(1, interval - 1), first=first, counting=counting)  # type: ignore[arg-type]
    assume(interval == 1 or shorter.plan(steps).calls != plan.calls)
    budget = RefreshInterval(budget={"calls": plan.calls}, first=first, counting=counting)  # type: ignore[arg-type]
    assert budget.plan(steps).computed == plan.computed


@pytest.mark.parametrize("calls", range(4, 51))
def test_the_recipes_meet_every_budget_of_fifty_steps(calls: int) -> None:
    budget = {"calls": calls}
    for recipe in (TaylorSeer(budget=budget), HiCache(budget=budget), FORA(budget=budget)):
        assert recipe.plan(50).calls == calls
    assert TaylorSeer(budget=budget, first=1).plan(50).calls == calls


def test_calls_that_lambda_leaves_over_go_to_the_worst_steps() -> None:
    """Equal errors let the walk compute all or nothing in between."""
    errors = torch.full((6, 6), 0.5)
    errors[0, 3] = 0.45
    plan = solve_threshold(errors, 4)
    assert plan.calls == 4
    assert plan == StepSchedule.of(plan.computed, 6, plan.threshold)
