"""BudCache: the search, what it measures, and the plan that its profile holds."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, Profile, Sampler
from erta_framework.errors import PolicyError, ProfileError
from erta_framework.testing import GaussianMixtureFlow, toy_profile
from erta_policies.budcache import BudCache, BudCacheProfiler, Search, search_steps
from erta_policies.budcache._search import start_plan
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.planning import PlanBudget

STEPS, CALLS = 7, 3
MODEL = GaussianMixtureFlow()
PROMPTS = ["a"]


def make_sampler(*policies) -> Sampler:
    return Sampler(policies, guidance=CFG(scale=2.0), num_steps=STEPS)


@cache
def sample_full() -> Tensor:
    return make_sampler().sample(MODEL, PROMPTS).samples.double()


@cache
def measure(steps, *beside) -> float:
    """Mean squared error of a plan, by itself."""
    cached = make_sampler(SkipPolicy(steps=steps), *beside).sample(MODEL, PROMPTS)
    return float((sample_full() - cached.samples.double()).square().mean())


@pytest.fixture(scope="module")
def profile() -> Profile:
    profiler = BudCacheProfiler(budget={"calls": CALLS}, iterations=25, climbs=2, neighbours=5)
    return make_sampler().calibrate(MODEL, PROMPTS, profiler=profiler)


def test_the_prefix_stays_and_every_plan_has_the_budget() -> None:
    tried: list[tuple[int, ...]] = []

    def note(steps: tuple[int, ...]) -> float:
        tried.append(steps)
        return float(sum(steps))

    start, prefix = start_plan(50, 12, 0.3)
    assert (len(start), start[:4], start[-1], prefix) == (12, (0, 1, 2, 3), 49, 4)
    found = search_steps(Search(50, prefix, note, random.Random(0)), start, iterations=400)
    assert all(steps[:4] == (0, 1, 2, 3) and len(set(steps)) == 12 for steps in tried)
    assert all(steps == tuple(sorted(steps)) and steps[-1] < 50 for steps in tried)
    assert len(tried) == len(set(tried))  # each is run once
    assert sum(found) == min(map(sum, tried)) < sum(start)


def test_hot_annealing_takes_worse_plans_and_cold_annealing_does_not() -> None:
    rugged = [0.0, 5.0, 4.0, 3.0, 4.5, 1.0, 6.0, 0.5]

    def loss(steps: tuple[int, ...]) -> float:
        return 1.0 + rugged[steps[-1]]

    for hot, cold in ((1e-9, 1e-9), (0.1, 1e-4)):
        search = Search(8, 1, loss, random.Random(3))
        assert loss(search_steps(search, (0, 3), hot=hot, cold=cold)) == 1.5


def test_the_search_finds_what_a_full_one_finds(profile: Profile) -> None:
    steps = BudCache(profile=profile).plan(STEPS).computed
    _, prefix = start_plan(STEPS, CALLS, 0.3)
    plans = [
        (*range(prefix), *rest)
        for rest in itertools.combinations(range(prefix, STEPS), CALLS - prefix)
    ]
    best = min(map(measure, plans))
    assert measure(steps) == pytest.approx(best, rel=1e-6)
    before, after = profile.statistics["loss"].tolist()
    assert after == pytest.approx(best, rel=1e-5)
    assert before == pytest.approx(measure(start_plan(STEPS, CALLS, 0.3)[0]), rel=1e-5)


def test_it_counts_its_runs(profile: Profile) -> None:
    # two full runs, and one for each plan, whose first steps are known from the second
    plans = int(profile.statistics["runs"].item()) - 1
    made = round(float(profile.provenance["full_runs"]) * STEPS)
    assert 2 * STEPS + plans <= made <= 2 * STEPS + plans * (CALLS - 1)


def test_it_searches_with_the_predictor_that_it_is_given() -> None:
    line = Forecaster(basis="newton", order=1)
    options = {"budget": {"calls": CALLS}, "iterations": 5, "climbs": 0, "predictor": line}
    made = make_sampler().calibrate(MODEL, PROMPTS, profiler=BudCacheProfiler(**options))
    steps = BudCache(profile=made).plan(STEPS).computed
    assert float(made.statistics["loss"][1]) == pytest.approx(measure(steps, line), rel=1e-5)


def test_batches_merge_and_an_unsearched_plan_is_the_start() -> None:
    profiler = BudCacheProfiler(budget={"calls": CALLS}, iterations=0, climbs=0)
    merged = toy_profile(profiler)
    found = BudCache(profile=merged, calls=CALLS).plan(10)
    assert found.computed == start_plan(10, CALLS, 0.3)[0]
    assert found.predicted is None
    assert torch.equal(merged.statistics["runs"], torch.zeros(1, dtype=torch.float64))


def test_what_does_not_fit_is_refused(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="a plan of 3 calls; search for 5"):
        BudCache(profile=profile, calls=5).plan(STEPS)
    with pytest.raises(ProfileError, match="a plan for 7 steps"):
        BudCache(profile=profile).plan(20)
    for budget in (None, {"psnr": 40.0}):
        with pytest.raises(PolicyError, match="give budget="):
            BudCacheProfiler(budget=budget)
    with pytest.raises(PolicyError, match="the prefix is a part"):
        BudCacheProfiler(budget={"calls": 4}, prefix=1.5)
    assert BudCache().calibrator() is None
    asked = BudCache(calls=6).calibrator()
    assert isinstance(asked, BudCacheProfiler)
    assert asked.budget == PlanBudget(calls=6)
