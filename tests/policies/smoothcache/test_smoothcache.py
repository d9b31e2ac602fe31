"""SmoothCache: what the profiler measures, the scan, and modules that run by their component."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import CFG, NoGuidance, Policy, Profile, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_framework.modules import KEEP, ReuseKept, Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.smoothcache import PUBLISHED, SmoothCache, SmoothCacheProfiler, plan_component
from erta_policies.smoothcache._schedule import count_work, plan_all, read_errors
from module_plans import STEPS, Plan, request, sample, visits

PARTS = Select(kind=("attention", "mlp"))
PROFILER = SmoothCacheProfiler(sites=PARTS)
ATTENTION, MLP = "blocks.0.attn.qkv", "blocks.0.mlp.up"


@pytest.fixture(scope="module")
def profile():
    (made,) = sample(PROFILER).emitted
    return made


class Watch(Policy):
    """Notes the steps in which modules ran."""

    counts: dict
    found: dict

    @hookimpl
    def post_step(self, step):
        for path, steps in self.found.items():
            if self.counts[path]:
                steps.append(step.index)
            self.counts[path] = 0


def ran(policy, guidance=None):
    """The steps at which the first attention and the first MLP really ran, and the result."""
    network, found = BlockFlow(), {ATTENTION: [], MLP: []}
    watch = Watch(counts=visits(network, ATTENTION, MLP), found=found)
    result = sample(watch, policy, network=network, guidance=guidance or NoGuidance())
    return found[ATTENTION], found[MLP], result


# ------------------------------------------------------------------------------ the scan
def published_scan(rows, steps, threshold):
    """The scan of the authors' code, written out: one array a lookback, from its first entry."""
    schedule, i = [None] * steps, 0
    while i < steps:
        for back in range(len(rows), 0, -1):
            if i < len(rows[back - 1]) and rows[back - 1][i] <= threshold:
                schedule[i] = 1
                for k in range(i + 1, min(i + back + 1, steps)):
                    schedule[k] = 0
                i += back + 1
                break
        else:
            schedule[i] = 1
            i += 1
    schedule[0] = schedule[-1] = 1
    return tuple(1 if entry is None else entry for entry in schedule)


@given(st.data())
def test_the_scan_is_the_published_one(data):
    steps = data.draw(st.integers(1, 12))
    lookback = data.draw(st.integers(1, 4))
    change = st.floats(0.0, 1.0)
    errors = [[data.draw(change) for _ in range(lookback)] for _ in range(steps)]
    # the code keeps the comparisons of lookback k from the first one on, made at step k
    rows = [[errors[i][k] for i in range(k + 1, steps)] for k in range(lookback)]
    threshold = data.draw(change)
    assert plan_component(errors, threshold) == published_scan(rows, steps, threshold)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=10))
def test_no_reused_step_is_further_from_its_source_than_allowed(errors):
    plan = plan_component(errors, 0.5)
    assert plan[0] == plan[-1] == 1
    for index, runs in enumerate(plan):
        if not runs:
            source = max(k for k in range(index) if plan[k])
            gap = next(k for k in range(index, len(plan)) if plan[k]) - 1 - source
            last = errors[source + gap][gap - 1] <= 0.5
            # the last step is forced, which may cut a run of reuse short
            assert last or plan.index(1, index) == len(plan) - 1


def test_golden_schedules():
    loose = PUBLISHED["dit-xl-2-256, threshold 0.18"]
    strict = PUBLISHED["dit-xl-2-256, threshold 0.08"]
    assert loose["attention"] == loose["mlp"]
    computed = [k for k, runs in enumerate(loose["mlp"]) if runs]
    assert computed == [0, 4, 7, *range(10, 50, 2), 49]
    assert strict["mlp"] == (1, 0, 0, 1, 0, 1, 0) + (1,) * 43
    assert len(loose["mlp"]) == len(strict["mlp"]) == 50


# --------------------------------------------------------------------------- the profiler
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
def test_errors_are_those_of_an_untouched_run(guidance):
    network, outputs = BlockFlow(), {}
    for path in (f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")):
        outputs[path] = []
        network.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: outputs[path].append(output.clone())
        )
    expected = sample(network=network, guidance=guidance)
    found = sample(PROFILER, guidance=guidance)
    assert torch.equal(found.sample, expected.sample)
    branches = 1 if isinstance(guidance, NoGuidance) else 2
    errors = read_errors(found.emitted[0])
    assert list(errors) == ["attn", "mlp"]
    for name, rows in errors.items():
        for step in range(STEPS):
            for back in range(1, 4):
                value = rows[step][back - 1]
                if back > step:
                    assert value == float("inf")
                    continue
                changes = []
                for branch in range(branches):
                    for k in range(3):
                        seen = outputs[f"blocks.{k}.{name}"][branch::branches]
                        old, new = seen[step - back].flatten(1), seen[step].flatten(1)
                        changes.append((old - new).abs().sum(1) / new.abs().sum(1))
                assert value == pytest.approx(float(torch.stack(changes).mean()), rel=1e-5)


def test_runs_merge(profile):
    twice = Profile.merge([profile, profile])
    again, once = read_errors(twice), read_errors(profile)
    for name, rows in once.items():
        assert torch.allclose(torch.tensor(again[name]), torch.tensor(rows))


# ----------------------------------------------------------------------------- the policy
def test_each_component_runs_by_its_own_schedule():
    schedule = {"attn": (1, 0, 1, 0, 0, 1), "mlp": (1, 1, 0, 0, 1, 1)}
    attention, mlp, _ = ran(SmoothCache(schedule=schedule, sites=PARTS))
    assert attention == [0, 2, 5]
    assert mlp == [0, 1, 4, 5]


def test_it_is_reuse_of_those_modules():
    schedule = {"attention": (1, 0, 1, 0, 0, 1)}

    def make(step, call):
        runs = schedule["attention"][step.index]
        return {
            place: KEEP if runs else ReuseKept()
            for place in call.sites
            if place.kind == "attention"
        }

    written = sample(Plan(make=make, selected=(PARTS,)))
    assert torch.equal(sample(SmoothCache(schedule=schedule, sites=PARTS)).sample, written.sample)


def test_nothing_within_the_threshold_runs_everything(profile):
    attention, mlp, result = ran(
        SmoothCache(profile=profile, threshold=0.0, sites=PARTS), CFG(scale=2.0)
    )
    assert attention == mlp == list(range(STEPS))
    assert torch.equal(result.sample, sample().sample)


def test_a_profile_gives_the_schedule_of_its_errors(profile):
    threshold = sorted(v for rows in read_errors(profile)["attn"] for v in rows)[3]
    plans = plan_all(read_errors(profile), threshold)
    attention, mlp, _ = ran(
        SmoothCache(profile=profile, threshold=threshold, sites=PARTS), CFG(scale=2.0)
    )
    assert attention == [k for k, runs in enumerate(plans["attn"]) if runs] != list(range(STEPS))
    assert mlp == [k for k, runs in enumerate(plans["mlp"]) if runs]


@pytest.mark.parametrize("work", [3.5, 4.0, 5.0, 6.0])
def test_a_budget_of_work_is_kept(profile, work):
    policy = SmoothCache(profile=profile, budget={"work": work}, sites=PARTS)
    trace = sample(policy).trace
    done = trace.work / 2 / 2  # two samples, two branches
    assert done <= work + 1e-6
    if work == 6.0:
        assert done > 4.0


def test_a_budget_below_what_must_run_is_refused(profile):
    with pytest.raises(ProfileError, match="cannot be scheduled in 1 network calls"):
        sample(SmoothCache(profile=profile, budget={"work": 1.0}, sites=PARTS))


def test_count_work():
    plans = {"a": (1, 0, 1, 1), "b": (1, 0, 0, 0)}
    assert count_work(plans, 4, {"a": 0.25, "b": 0.5}) == 4 - 0.25 - 1.5


def test_a_step_that_a_rule_leaves_out_is_made_up_for():
    schedule = {"attn": (1, 1, 0, 1, 0, 0), "mlp": (1,) * 6}
    network = BlockFlow()
    counts = visits(network, ATTENTION)
    policy = SmoothCache(schedule=schedule, sites=PARTS)
    sample(AlternateSteps(), policy, network=network, guidance=NoGuidance())
    # steps 1 and 3 are left out: due at 2 and 4
    assert counts[ATTENTION] == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "no schedule"),
        ({"published": "dit"}, "there is dit-xl-2-256"),
        ({"published": "dit-xl-2-256, threshold 0.08", "threshold": 0.1}, "none beside a schedule"),
        ({"schedule": {"attn": (0, 1)}}, "begins with 1"),
        ({"schedule": {"attn": (1, 2)}}, "0 or 1"),
        ({"schedule": {"attn": (1,)}, "published": "x"}, "give exactly one"),
    ],
)
def test_settings_are_refused(options, match):
    with pytest.raises(PolicyError, match=match):
        SmoothCache(**options)


def test_a_profile_takes_a_threshold_or_work(profile):
    with pytest.raises(PolicyError, match="give one of them"):
        SmoothCache(profile=profile)
    with pytest.raises(PolicyError, match="in work"):
        SmoothCache(profile=profile, budget={"calls": 3})


def test_components_and_lengths_are_checked():
    with pytest.raises(PolicyError, match="'attn1', which is no component here; there are attenti"):
        sample(SmoothCache(schedule={"attn1": (1,) * STEPS}, sites=PARTS))
    with pytest.raises(PolicyError, match="is for 50 steps and the run has 6"):
        sample(SmoothCache(published="dit-xl-2-256, threshold 0.08", sites=PARTS))


def test_a_profile_of_another_run_is_refused(profile):
    policy = SmoothCache(profile=profile, threshold=0.1, sites=PARTS)
    with pytest.raises(ProfileMismatchError, match="num_steps"):
        sample(policy, given=request(steps=STEPS + 2))


def test_configuration():
    (policy,) = build_policies([{"smoothcache": {"schedule": {"attn": [1, 0], "ff": [1, 1]}}}])
    assert policy.schedule == {"attn": (1, 0), "ff": (1, 1)}
