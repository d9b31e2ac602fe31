"""Replays of plans: what is measured, kept, asked for in dB and seconds, and refined."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from erta_framework import CFG, Engine, Profile, Sampler
from erta_framework.budgets import (
    MeasuredFront,
    ReplaySetting,
    count_replay_calls,
    list_measured_units,
    measure,
    own_loop,
    plan_front,
    promise,
    with_calls,
    with_steps,
)
from erta_framework.budgets._measured_front import device_facts, level_rises
from erta_framework.budgets._refinement import list_moves
from erta_framework.errors import InputError, PolicyError, ProfileError
from erta_framework.metrics import psnr
from erta_framework.report import write_front_plot
from erta_framework.report._profile_card import describe_front
from erta_framework.testing import AlternateSteps, GaussianMixtureFlow
from erta_policies.ertacache import (
    ErrorLinearizer,
    ERTACache,
    ResidualProfiler,
    ResidualReuse,
    SkipPolicy,
)
from erta_policies.forecast import Forecaster
from erta_policies.meancache import AverageVelocity, MeanCacheProfiler, MeanCacheSchedule
from erta_policies.planning import PlannedSchedule

STEPS = 16
PROMPTS = ("one", "two", "three", "four")
CALLS = (4, 6, 8, 11)
SAMPLER = Sampler(num_steps=STEPS, guidance=CFG(scale=2.0), accelerator="cpu")
TOY = GaussianMixtureFlow()


class Counted:
    """A sampler that counts network calls of each branch and batch."""

    def __init__(self):
        self.calls = 0

    def __call__(self, policies):
        inner = own_loop(SAMPLER)(policies)
        outer = self

        class Counting:
            facts = inner.facts

            def sample(self, model, prompts, *, seed=0):
                result = inner.sample(model, prompts, seed=seed)
                outer.calls += result.network_calls // 2
                return result

        return Counting()


@pytest.fixture(scope="module")
def profile() -> Profile:
    return SAMPLER.calibrate(TOY, PROMPTS, seed=50, profiler=ResidualProfiler())


def setting(sampler=None) -> ReplaySetting:
    return ReplaySetting(
        sampler=sampler or own_loop(SAMPLER), model=TOY, prompts=PROMPTS, seed=50, device="cpu"
    )


def planned(profile, **options):
    return [PlannedSchedule(profile=profile, budget={"calls": 8}, **options)]


def rank_correlation(a, b) -> float:
    """Spearman's rank correlation of numbers that all differ."""
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@pytest.fixture(scope="module")
def measured(profile) -> MeasuredFront:
    return measure(setting(), planned(profile), STEPS, CALLS, refine=4)


# -------------------------------------------------------------------------------- measuring
@pytest.mark.parametrize(
    ("cost", "beside"),
    [
        ("reuse", lambda _: []),
        ("grouping", lambda _: []),
        ("integrated", lambda _: []),
        ("corrected", lambda profile: [ResidualReuse(), ErrorLinearizer(profile=profile)]),
        ("forecast", lambda _: [Forecaster()]),
    ],
)
def test_predicted_and_measured_errors_rank_alike(profile, cost, beside):
    others = beside(profile)
    found = measure(
        setting(), [*planned(profile, cost=cost), *others], STEPS, (3, 4, 5, 6, 8, 10, 12, 14)
    )
    assert all(a > b for a, b in pairwise(found.predicted))
    assert rank_correlation(found.predicted, [-quality for quality in found.psnr]) > 0.9


def test_the_network_calls_are_as_stated_beforehand(profile):
    counter = Counted()
    found = measure(setting(counter), planned(profile), STEPS, (4, 8), refine=3)
    assert counter.calls == found.spent
    assert found.spent <= count_replay_calls((4, 8), STEPS, refine=3) == STEPS + 4 * (4 + 8)


def test_refining_is_never_worse_on_the_samples_it_saw(measured):
    for plain, better, steps, moved in zip(
        measured.psnr, measured.refined_psnr, measured.steps, measured.refined, strict=True
    ):
        assert better >= plain
        assert len(steps) == len(moved)
        assert (moved[0], moved[-1]) == (0, STEPS - 1)
        assert (steps == moved) == (better == plain)
    assert any(a != b for a, b in zip(measured.steps, measured.refined, strict=True))


def test_what_a_replay_measures_is_what_sampling_gives(profile, measured):
    full = own_loop(SAMPLER)(()).sample(TOY, PROMPTS, seed=50)
    (policy,) = with_calls(planned(profile), 6)
    result = own_loop(SAMPLER)([policy]).sample(TOY, PROMPTS, seed=50)
    assert float(psnr(result.samples, full.samples).mean()) == measured.psnr[1]


def test_quality_may_be_measured_to_the_exact_solution(profile):
    solved = setting().with_solution(substeps=4)
    assert solved.solution is not None
    found = measure(solved, planned(profile), STEPS, (6,), refine=3)
    assert found.target == "the exact solution"
    assert found.spent == STEPS * (1 + 4 + 2) + 6 * 4
    # the planner's search is judged by it as well
    (policy,) = with_calls(planned(profile), 6)
    for steps, quality in ((found.steps[0], found.psnr), (found.refined[0], found.refined_psnr)):
        result = own_loop(SAMPLER)(with_steps([policy], steps)).sample(TOY, PROMPTS, seed=50)
        assert float(psnr(result.samples, solved.solution.samples).mean()) == quality[0]
    again = MeasuredFront.of(found.added_to(profile), found.unit)
    assert again == found
    card = "\n".join(describe_front(found, STEPS))
    assert "PSNR to the exact solution" in card


def test_moves_keep_the_ends_and_the_number_of_steps():
    found = list(list_moves((0, 3, 4, 9)))
    assert len(found) == len(set(found))
    for steps in found:
        assert (steps[0], steps[-1], len(steps)) == (0, 9, 4)
        assert list(steps) == sorted({*steps})
    assert list(list_moves((0, 1, 2))) == []


# ------------------------------------------------------------------------------------ file
def test_the_measurement_survives_its_file_and_does_not_merge(profile, measured, tmp_path):
    path = measured.added_to(profile).save(tmp_path / "toy.safetensors")
    loaded = Profile.load(path)
    assert MeasuredFront.of(loaded, measured.unit) == measured
    assert MeasuredFront.of(profile, measured.unit) is None
    assert loaded.digest != profile.digest
    assert Profile.merge([loaded]).statistics.keys() == loaded.statistics.keys()
    with pytest.raises(ProfileError, match=r"holds plans that were measured.*measure again"):
        Profile.merge([loaded, loaded])


# --------------------------------------------------------------------------------- budgets
def test_a_budget_in_db_is_read_from_plans_of_its_own_unit(profile):
    held, found = profile, {}
    for cost in ("reuse", "integrated"):
        front = measure(setting(), planned(profile, cost=cost), STEPS, (4, 8))
        assert front.unit == f"planned_schedule {cost}, gamma 2, signal max"
        held, found[cost] = front.untimed().added_to(held), front
    assert list_measured_units(held) == sorted(front.unit for front in found.values())
    for cost, front in found.items():
        budget = {"psnr": front.psnr[-1] - 0.01}
        policy = PlannedSchedule(profile=held, budget=budget, cost=cost)
        assert len(policy.plan(STEPS).computed) == 8
        assert MeasuredFront.of(held, front.unit).psnr == front.psnr
    for options in ({"cost": "grouping"}, {"gamma": 4.0}, {"signal": "mean"}):
        policy = PlannedSchedule(profile=held, budget={"psnr": 10.0}, **options)
        message = f"measured with {policy.unit}.*holds only those of planned_schedule integrated"
        with pytest.raises(ProfileError, match=message):
            Engine([policy])
    timed = replace(found["reuse"], seconds=(0.4, 0.8, 1.6)).added_to(held)
    policy = PlannedSchedule(profile=timed, budget={"seconds": 0.75}, gamma=4.0)
    assert len(policy.plan(STEPS).computed) == 7  # seconds follow from the calls alone


@pytest.mark.parametrize("plan", [ERTACache, PlannedSchedule])
def test_a_budget_in_db_is_met_on_the_samples_it_was_measured_on(profile, plan):
    found = measure(setting(), [plan(profile=profile, budget={"calls": 8})], STEPS, CALLS)
    held = found.added_to(profile)
    for row, quality in enumerate(found.psnr):
        policy = plan(profile=held, budget={"psnr": quality - 0.01})
        computed = len(own_loop(SAMPLER)([policy]).sample(TOY, ["x"]).traces[0].computed_steps)
        assert computed <= found.calls[row]
        reached = measure(setting(), [policy], STEPS, [computed]).psnr[0]
        assert reached >= min(found.psnr[0], quality - 3.0)
    calls = [
        len(Engine([plan(profile=held, budget={"psnr": q})]).policies[0].plan(STEPS).computed)
        for q in (min(found.psnr), sum(found.psnr) / 4, max(found.psnr))
    ]
    assert calls == sorted(calls)
    with pytest.raises(ProfileError, match=r"above the .* dB of 11 calls"):
        Engine([plan(profile=held, budget={"psnr": max(found.psnr) + 1})])


def test_seconds_become_calls_and_hold_on_this_device_alone(profile, measured):
    front = replace(measured, seconds=(0.5, 0.7, 0.9, 1.2, 1.7))  # 0.1 + 0.1 a call
    held = front.added_to(profile)
    assert front.seconds_line(STEPS) == (pytest.approx(0.1), pytest.approx(0.1))
    policy = PlannedSchedule(profile=held, budget={"seconds": 1.0})
    assert len(policy.plan(STEPS).computed) == 9
    assert len(PlannedSchedule(profile=held, budget={"seconds": 9}).plan(STEPS).computed) == STEPS
    with pytest.raises(ProfileError, match=r"0.2 s is less than the 0.5 s of 4 calls"):
        Engine([PlannedSchedule(profile=held, budget={"seconds": 0.2})])
    assert front.device == device_facts(torch.device("cpu"))
    own_loop(SAMPLER)([policy]).sample(TOY, PROMPTS)
    with pytest.raises(ProfileError, match=r"batches of 4, this run is on cpu .* with 1"):
        own_loop(SAMPLER)([policy]).sample(TOY, ["one"])
    elsewhere = replace(front, device="cuda H100").added_to(profile)
    with pytest.raises(ProfileError, match=r"measured on cuda H100 .* measure it with `erta plan"):
        own_loop(SAMPLER)([PlannedSchedule(profile=elsewhere, budget={"seconds": 1.0})]).sample(
            TOY, PROMPTS
        )


def test_refined_plans_are_used_where_asked_for(profile, measured):
    held = measured.added_to(profile)
    policy = PlannedSchedule(profile=held, budget={"calls": 6}, refined=True)
    assert policy.plan(STEPS).computed == measured.refined[1]
    assert policy.plan(STEPS).predicted >= measured.predicted[1]  # of its own edges
    with pytest.raises(ProfileError, match="take 4 calls and more, the budget has 3"):
        Engine([PlannedSchedule(profile=held, budget={"calls": 3}, refined=True)])


def test_a_larger_error_never_promises_more(measured):
    assert level_rises([(0.0, 9.0), (1.0, 5.0), (2.0, 7.0), (3.0, 4.0)]) == [
        (0.0, 9.0),
        (1.0, 6.0),
        (2.0, 6.0),
        (3.0, 4.0),
    ]
    errors = torch.logspace(-6, 2, 60).tolist()
    promised = [measured.psnr_of(error) for error in errors]
    assert all(a >= b for a, b in pairwise(promised))
    assert promised[-1] == -float("inf")


# ------------------------------------------------------------------------------------ front
@pytest.mark.parametrize("plan", [ERTACache, PlannedSchedule])
def test_a_front_has_no_plan_that_another_beats(profile, plan, tmp_path):
    policies = [plan(profile=profile, budget={"calls": 8})]
    rows = plan_front(policies, STEPS, measure(setting(), policies, STEPS, CALLS))
    assert all(a.calls < b.calls and a.predicted > b.predicted for a, b in pairwise(rows))
    assert rows[-1].calls == STEPS
    assert rows[-1].predicted == 0.0
    assert {row.calls for row in rows if row.psnr is not None} <= set(CALLS)
    assert all(row.seconds is not None for row in rows)
    json.dumps([row.record() for row in rows], allow_nan=False)
    pytest.importorskip("matplotlib")
    assert write_front_plot("toy", rows, tmp_path / "front.png").stat().st_size > 10_000


def test_what_cannot_be_replayed_is_refused(profile):
    with pytest.raises(PolicyError, match=r"none of the policies takes a budget \(alternate_steps"):
        with_calls([AlternateSteps()], 4)
    for calls, refine in (((), 0), ((STEPS,), 0), ((4,), -1)):
        with pytest.raises(InputError, match="give numbers from 1 to 15"):
            measure(setting(), planned(profile), STEPS, calls, refine)
    edges = SAMPLER.calibrate(TOY, PROMPTS, profiler=MeanCacheProfiler())
    schedule = MeanCacheSchedule(profile=edges, calls=8)
    with pytest.raises(PolicyError, match="reads the plan of mean_cache_schedule"):
        with_steps([schedule, AverageVelocity(schedule=schedule)], (0, 5, 15))


def test_the_cost_of_a_request_is_said_beforehand(profile):
    said = promise(planned(profile))
    assert said.startswith("every request computes 8 of 16 steps, 2.00 steps a network call (plann")
    assert f"{planned(profile)[0].plan(STEPS).predicted:.4g}" in said
    assert promise([AlternateSteps()], STEPS) == ""
    assert promise([SkipPolicy(every=2)]) == ""  # how many steps, only the request says
