"""Budgets in every policy whose schedule is planned: calls and speed-up; exactly one key."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import Engine
from erta_framework.config import build_policies, load_config, options_of
from erta_framework.errors import ConfigError, PolicyError, ProfileError
from erta_framework.plugins import list_budgeted, policies
from erta_framework.testing import toy_profile, toy_run
from erta_policies.deepcache import CenteredSteps
from erta_policies.ertacache import ERTACache, ResidualProfiler, SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.magcache import MagCache, MagCacheProfiler
from erta_policies.meancache import MeanCache, MeanCacheProfiler, MeanCacheSchedule
from erta_policies.planning import MultistepSchedule, PlannedSchedule
from erta_policies.shared import PlanBudget
from erta_policies.taylorseer import FORA, HiCache, RefreshInterval, TaylorSeer
from erta_policies.teacache import TeaCacheProfiler, TeaCacheSchedule

STEPS = 10
RESIDUALS = toy_profile(ResidualProfiler())
EDGES = toy_profile(MeanCacheProfiler(longest=STEPS))
RATIOS = toy_profile(MagCacheProfiler())
CHANGES = toy_profile(TeaCacheProfiler(signal="latents"))

BUDGETED = {
    "ertacache": lambda b: ERTACache(profile=RESIDUALS, budget=b),
    "skip_policy": lambda b: SkipPolicy(profile=RESIDUALS, budget=b),
    "planned_schedule": lambda b: PlannedSchedule(profile=RESIDUALS, budget=b),
    "planned forecast": lambda b: PlannedSchedule(profile=RESIDUALS, budget=b, cost="forecast"),
    "multistep_schedule": lambda b: MultistepSchedule(profile=RESIDUALS, budget=b),
    "meancache": lambda b: MeanCache(profile=EDGES, budget=b),
    "meancache_schedule": lambda b: MeanCacheSchedule(profile=EDGES, budget=b),
    "magcache": lambda b: MagCache(profile=RATIOS, budget=b, max_skips=9, retention=0.0),
    "teacache_schedule": lambda b: TeaCacheSchedule(profile=CHANGES, budget=b),
    "refresh_interval": lambda b: RefreshInterval(budget=b, first=1),
    "centered_steps": lambda b: CenteredSteps(budget=b, center=4),
    "taylorseer": lambda b: TaylorSeer(budget=b, first=1),
    "hicache": lambda b: HiCache(budget=b, first=1),
    "fora": lambda b: FORA(budget=b),
}
ELSEWHERE = {"cachequant", "cem", "grouped_steps", "spectrum", "growing_window", "freqca"}
"""Policies whose budgets are tested beside them: they need places, or many first steps."""


def test_every_policy_of_the_catalogue_takes_a_budget_or_says_why_not(monkeypatch):
    known = list_budgeted()
    assert {*known} == {*BUDGETED} - {"planned forecast"} | ELSEWHERE
    # it looks them all up each time
    monkeypatch.setattr("erta_framework.config._problems.list_budgeted", lambda: known)
    catalogue = policies()
    for name in catalogue.names():
        cls = catalogue.load(name)
        if name in known or "budget" in {field.name for field in fields(cls)}:
            continue  # a budget of places inside the network is no plan of whole steps
        # what knows its steps beforehand and has no budget has them from a fit or a search
        assert not hasattr(cls, "plan") or name in {"budcache", "fitted_schedule"}
        if hasattr(cls, "with_calls"):
            assert cls(profile="x").with_calls(5) is None, name
        with pytest.raises(ConfigError, match=f"{name} takes no budget: .*planned_schedule"):
            build_policies([{name: {"budget": {"calls": 5}}}])


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [{"calls": 5}, {"speedup": 2.0}, {"work": 5.5}])
def test_a_request_never_takes_more_than_its_budget(name, budget):
    result = toy_run([BUDGETED[name](budget)])
    assert 4 <= result.trace.network_calls <= 2 * 5  # two branches
    if name != "magcache":  # whose branches follow tables of their own
        assert result.trace.network_calls == 2 * len(result.trace.computed_steps)


@pytest.mark.parametrize("name", ["ertacache", "planned_schedule", "planned forecast"])
def test_planners_use_their_budget_up(name):
    assert len(toy_run([BUDGETED[name]({"calls": 5})]).trace.computed_steps) == 5


@pytest.mark.parametrize("name", BUDGETED)
def test_with_calls_is_the_budget_in_other_words(name):
    asked = BUDGETED[name]({"speedup": 1.25}).with_calls(4)
    same = BUDGETED[name]({"calls": 4})
    ran = [toy_run([policy]).trace.computed_steps for policy in (asked, same)]
    assert ran[0] == ran[1]


@pytest.mark.parametrize("name", BUDGETED)
def test_the_schedule_is_the_same_for_every_request(name):
    policy = BUDGETED[name]({"calls": 4})
    first, second = (toy_run([policy], seed=seed).trace.computed_steps for seed in (0, 5))
    assert first == second


def test_a_full_budget_is_bit_identical_to_no_policy():
    import torch

    for parts in ([PlannedSchedule(profile=RESIDUALS, budget={"calls": STEPS}), Forecaster()],):
        assert torch.equal(toy_run(parts).sample, toy_run().sample)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a budget got nothing; give exactly one of calls, speedup, psnr, seconds, work"),
        ({"calls": 5, "psnr": 30.0}, "a budget got calls and psnr; give exactly one"),
        ({"cals": 5}, "a budget has no 'cals'; did you mean 'calls'"),
        ({"calls": 0}, "calls 0: it must be finite and at least 1"),
        ({"speedup": 0.5}, "speedup 0.5: it must be finite and at least 1"),
        ({"work": 0.5}, "work 0.5: it must be finite and at least 1"),
        ({"seconds": 0.0}, "seconds 0.0: it must be finite and above 0"),
        ({"psnr": float("inf")}, "psnr inf"),
    ],
)
def test_a_budget_is_exactly_one_thing(given, message):
    with pytest.raises(PolicyError, match=message):
        PlanBudget.of(given)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ERTACache(profile="x", calls=3, budget={"calls": 3}), "got budget and calls"),
        (lambda: SkipPolicy(profile="x", threshold=0.1, budget={"calls": 3}), "budget, threshold"),
        (lambda: PlannedSchedule(profile="x"), "PlannedSchedule got no budget"),
        (lambda: PlannedSchedule(budget={"calls": 3}, cost="speed"), "cost='speed'"),
        (lambda: PlannedSchedule(budget={"calls": 3}, gamma=0.0), "gamma must be above"),
        (lambda: MagCache(profile="x", threshold=0.1, budget={"calls": 3}), "MagCache got thresh"),
        (lambda: MeanCache(profile="x", calls=3, budget={"calls": 3}), "got calls=3 and budget="),
        (
            lambda: TeaCacheSchedule(profile="x", threshold=0.1, budget={"calls": 3}),
            "TeaCacheSchedule got threshold=0.1 and budget=",
        ),
        (lambda: RefreshInterval(interval=3, budget={"calls": 3}), "got interval=3 and budget="),
        (lambda: FORA(budget={"psnr": 30.0}), "psnr needs a profile.*give calls or speedup"),
        (lambda: Engine([PlannedSchedule(budget={"calls": 3})]), "needs profile="),
    ],
)
def test_settings_that_exclude_each_other(build, message):
    with pytest.raises(PolicyError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlannedSchedule(profile=RESIDUALS, budget={"calls": 1}), "at least 2 are needed"),
        (lambda: MagCache(profile=RATIOS, budget={"calls": 2}, max_skips=1), "forced by its other"),
        (
            lambda: ERTACache(profile=RESIDUALS, budget={"psnr": 30.0}),
            "psnr needs plans that were measured.*erta plan",
        ),
        (lambda: MeanCache(profile=EDGES, budget={"seconds": 3.0}), "holds none; measure"),
        (
            lambda: PlannedSchedule(profile=RESIDUALS, budget={"calls": 3}, refined=True),
            "no refined plans",
        ),
    ],
)
def test_budgets_out_of_reach(build, message):
    with pytest.raises(ProfileError, match=message):
        Engine([build()])


def test_a_budget_in_a_configuration(tmp_path):
    path = RESIDUALS.save(tmp_path / "toy.safetensors")
    file = tmp_path / "run.yaml"
    file.write_text(f"policies: [{{ertacache: {{profile: {path}, budget: {{speedup: 2.0}}}}}}]\n")
    (policy,) = load_config(file).policies
    assert policy.budget == PlanBudget(speedup=2.0)
    (policy,) = load_config(file, ["policies.0.ertacache.budget={calls: 4}"]).policies
    assert policy.budget == PlanBudget(calls=4)
    (again,) = build_policies([{"ertacache": options_of(policy)}])
    assert again.budget == policy.budget
    with pytest.raises(PolicyError, match="a budget got calls and speedup"):
        load_config(file, ["policies.0.ertacache.budget.calls=4"])
    with pytest.raises(ConfigError, match=r"ertacache\.budget: unknown key 'spedup'"):
        load_config(file, ["policies.0.ertacache.budget={spedup: 2}"])
    with pytest.raises(ConfigError, match=r"budget\.calls is 'many'"):
        load_config(file, ["policies.0.ertacache.budget={calls: many}"])
    with pytest.raises(ConfigError, match="budget is 5 of type int"):
        load_config(file, ["policies.0.ertacache.budget=5"])


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 200), speedup=st.floats(1.0, 50.0))
def test_a_speedup_is_kept_by_the_calls_it_gives(steps, speedup):
    calls = PlanBudget(speedup=speedup).calls_for(steps)
    assert calls == 0 or steps / calls >= speedup - 1e-6
    assert steps / (calls + 1) < speedup + 1e-6
