"""`SkipPolicy`: its five schedules, and what really runs under them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from erta_framework import CFG, Engine, FlowEuler
from erta_framework.budgets import StepSchedule, forecast
from erta_framework.errors import InputError, PolicyError, ProfileError
from erta_policies.ertacache import (
    ERTACache,
    ReplayProfiler,
    ResidualReuse,
    SkipPolicy,
    pair_errors,
    predict_errors,
    solve_threshold,
    walk,
)

STEPS = 8


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        ({"evenly": 3}, (0, 4, 7)),
        ({"every": 3}, (0, 3, 6, 7)),
        ({"every": 3, "warmup": 3}, (0, 1, 2, 3, 6, 7)),
        ({"every": 1}, tuple(range(STEPS))),
        ({"every": 100}, (0, 7)),
        ({"every": 100, "warmup": 100}, tuple(range(STEPS))),
        ({"steps": (2, 5, 2)}, (0, 2, 5)),
        ({"steps": ()}, (0,)),
    ],
)
def test_schedules_without_a_profile(
    world: SimpleNamespace, options: dict[str, Any], computed: tuple[int, ...]
) -> None:
    policy = SkipPolicy(**options)
    assert policy.plan(STEPS) == StepSchedule.of(computed, STEPS)
    network = world.Swirl()
    result = world.run([policy], network=network)
    assert result.trace.computed_steps == computed
    assert network.calls == result.trace.network_calls == len(computed)
    assert [call.source for call in result.trace.calls() if not call.computed] == [
        source for step, source in enumerate(policy.plan(STEPS).sources) if source != step
    ]


@pytest.mark.parametrize("calls", range(2, STEPS + 1))
@pytest.mark.parametrize("guidance", [None, CFG(scale=3.0), CFG(scale=3.0, batched=True)])
def test_calls_are_never_exceeded(world: SimpleNamespace, calls: int, guidance: Any) -> None:
    profile = world.calibrate(guidance=guidance)
    policy = SkipPolicy(profile=profile, calls=calls)
    plan = policy.plan(STEPS)
    assert plan == solve_threshold(pair_errors(profile), calls)
    result = world.run([policy], guidance=guidance)
    assert len(result.trace.computed_steps) == plan.calls <= calls
    branches = 2 if guidance == CFG(scale=3.0) else 1
    assert result.trace.network_calls == branches * plan.calls


@pytest.mark.parametrize(("start", "stop"), [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("signal", ["first", "mean", "max"])
def test_the_plan_is_what_runs_under_a_guidance_interval(
    world: SimpleNamespace, start: float, stop: float, batched: bool, signal: Any
) -> None:
    guidance = CFG(scale=3.0, start=start, stop=stop, batched=batched)
    profile = world.calibrate(guidance=guidance)
    policy = SkipPolicy(profile=profile, threshold=100.0, signal=signal)
    plan = policy.plan(STEPS)
    result = world.run([policy], guidance=guidance)
    assert result.trace.computed_steps == plan.computed
    if start > 0:
        assert int(start * STEPS) in plan.computed  # the unconditional branch is cold there


def test_threshold_walk_on_a_profile(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg)
    for signal in ("first", "mean", "max"):
        for warmup in (1, 4):
            policy = SkipPolicy(profile=profile, threshold=0.3, warmup=warmup, signal=signal)
            assert policy.plan(STEPS) == walk(pair_errors(profile, signal), 0.3, warmup)


def test_signals_decide_differently(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg)
    ratio = profile.statistics["ratio"]
    ratio[1] = 5 * ratio[0]  # the unconditional branch is five times worse
    policies = {
        signal: SkipPolicy(profile=profile, threshold=0.4, signal=signal)  # type: ignore[arg-type]
        for signal in ("first", "mean", "max")
    }
    calls = {signal: policy.plan(STEPS).calls for signal, policy in policies.items()}
    assert calls["first"] < calls["mean"] <= calls["max"]


def test_reasons_say_why(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    errors = pair_errors(profile)
    result = world.run([SkipPolicy(profile=profile, threshold=0.35, warmup=2)])
    reasons = [call.reason for call in result.trace.calls()]
    assert reasons[0] == "cold"
    assert reasons[1] == "warm-up"
    assert reasons[-1] == "last step"
    newest = 1
    for call in list(result.trace.calls())[2:-1]:
        sign = ">=" if call.computed else "<"
        assert call.reason == f"error {float(errors[newest, call.index]):.4f} {sign} 0.3500"
        assert (float(errors[newest, call.index]) >= 0.35) == call.computed
        newest = call.index if call.computed else newest
    schedule = world.run([SkipPolicy(every=3)]).trace
    assert [c.reason for c in schedule.calls()] == ["cold", *["schedule"] * 6, "last step"]


def test_img2img_walks_from_its_first_step(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    errors = pair_errors(profile)
    policy = SkipPolicy(profile=profile, threshold=0.5)
    for first in range(1, STEPS):
        result = world.run([policy], first=first)
        expected = walk(errors, 0.5, first + 1)
        assert result.trace.computed_steps == tuple(i for i in expected.computed if i >= first)
        sources = [call.source for call in result.trace.calls()]
        assert sources == [
            None if source == step else source
            for step, source in enumerate(expected.sources)
            if step >= first
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "SkipPolicy got no schedule; give exactly one of budget, threshold, calls, evenly"),
        ({"evenly": 3, "every": 2}, "SkipPolicy got evenly, every; give exactly one"),
        ({"calls": 3, "threshold": 0.1}, "SkipPolicy got threshold, calls"),
        ({"every": 0}, r"every=0\): it must be at least 1"),
        ({"threshold": -1.0}, r"threshold=-1.0\): it must be >= 0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"every": 2, "warmup": 0}, r"warmup=0\): step 0 is always computed"),
        ({"evenly": 3, "warmup": 2}, "has no effect on this schedule; it serves budget, threshold"),
        ({"steps": (1,), "warmup": 2}, "has no effect"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        SkipPolicy(**options)


def test_impossible_schedules_of_a_run(world: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"lists steps \[8, -1\], outside 0..7"):
        world.run([SkipPolicy(steps=(8, -1, 2))])
    with pytest.raises(ProfileError, match="9 calls cannot be spread over 8 steps"):
        world.run([SkipPolicy(evenly=9)])
    for calls in (1, 9):
        with pytest.raises(ProfileError, match=f"{calls} network calls cannot be scheduled"):
            Engine([SkipPolicy(profile=world.calibrate(), calls=calls)])


def test_a_plan_for_another_number_of_steps_is_refused(world: SimpleNamespace) -> None:
    policy = SkipPolicy(profile=world.calibrate(), calls=4)
    with pytest.raises(ProfileError, match="profile of 8 steps, a schedule of 10 was asked for"):
        policy.plan(10)


def test_a_plan_needs_no_run_and_no_grid(world: SimpleNamespace) -> None:
    errors = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 1], [0, 0, 0, 0]]) / 10
    policy = SkipPolicy(profile=world.from_errors(errors), threshold=0.15)
    assert policy.plan(4).computed == (0, 2, 3)


def test_residual_reuse_is_what_core_does_unasked(world: SimpleNamespace) -> None:
    skip = SkipPolicy(steps=(0, 3, 7))
    silent, listed = world.run([skip]), world.run([skip, ResidualReuse()])
    assert torch.equal(silent.sample, listed.sample)
    assert listed.trace.computed_steps == (0, 3, 7)
    assert torch.equal(world.run([ResidualReuse()]).sample, world.run().sample)


def test_reuse_is_the_newest_residual_added_to_the_latent(world: SimpleNamespace) -> None:
    latents = world.noise()
    result = world.run([SkipPolicy(steps=(0, 2, 3))], latents=latents, num_steps=4)
    network, cond = world.Swirl(), world.conditions(latents)[0]
    schedule, x, residual = FlowEuler().schedule(4), latents, None
    for i in range(4):
        if i != 1:
            v = network(x, torch.full((3,), schedule.times[i]), cond)
            residual = v - x
        else:
            v = x + residual
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    assert torch.equal(result.sample, x)


def test_forecast_of_a_walk(world: SimpleNamespace) -> None:
    profile = world.calibrate(guidance=world.cfg)
    policy = SkipPolicy(profile=profile, calls=4)
    plan, errors = policy.plan(STEPS), pair_errors(profile)
    assert plan.describe() == predict_errors(profile, plan).describe()
    assert plan.predicted is not None
    forecast = plan.errors
    assert math.isnan(forecast[0])
    for step in range(1, STEPS):
        newest = max(c for c in plan.computed if c < step)
        assert forecast[step] == float(errors[newest, step])
    assert plan.threshold is not None
    inner = range(1, STEPS - 1)
    assert [i for i in inner if forecast[i] >= plan.threshold] == list(plan.computed[1:-1])


def test_forecast_of_a_replay_and_of_schedules_without_a_profile(world: SimpleNamespace) -> None:
    (profile,) = world.run([ReplayProfiler(threshold=0.4)]).emitted
    policy = SkipPolicy(profile=profile)
    plan = policy.plan(STEPS)
    assert plan.describe() == {"calls": float(plan.calls), "threshold": 0.4}
    assert math.isnan(plan.errors[0])
    assert list(plan.errors[1:]) == (profile.statistics["error"] / 3).tolist()[1:]
    uniform = SkipPolicy(evenly=3).plan(STEPS)
    assert uniform.describe() == {"calls": 3.0}
    assert uniform.errors == ()
    # with a profile at hand, uniform reuse can be put in numbers as well
    known = SkipPolicy(evenly=3, profile=world.calibrate())
    assert known.plan(STEPS).facts["error"] > 0
    assert known.plan(STEPS).errors[1] > 0


def test_core_asks_for_the_forecast(world: SimpleNamespace) -> None:
    profile = world.calibrate()
    told = forecast([ERTACache(profile=profile, calls=4)], STEPS)
    policy = SkipPolicy(profile=profile, calls=4)
    plan = policy.plan(STEPS)
    assert told.policy == "skip_policy"
    assert (told.computed, told.sources, told.threshold) == (
        plan.computed,
        plan.sources,
        plan.threshold,
    )
    assert told.describe() == plan.describe()
    assert told.errors[1:] == plan.errors[1:]
