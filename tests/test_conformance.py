"""Every first-party policy keeps the whole contract."""

from __future__ import annotations

from erta_framework import Policy
from erta_framework.policy import flatten
from erta_framework.registry import policies
from erta_framework.testing import parametrize_with_checks, toy_profile

OURS = {name: policies(only=()).load(name) for name in policies(only=()).names()}

ResidualProfiler = OURS["residual_profiler"]
ReplayProfiler = OURS["replay_profiler"]
SkipPolicy = OURS["skip_policy"]
TimestepAdjuster = OURS["timestep_adjuster"]
ErrorLinearizer = OURS["error_linearizer"]
ERTACache = OURS["ertacache"]
EasyCache = OURS["easycache"]
Forecaster = OURS["forecaster"]
EASY = EasyCache(threshold=0.5, warmup=2)

PROFILE = toy_profile(ResidualProfiler())
REPLAYED = toy_profile(ReplayProfiler(threshold=0.3))

POLICIES: list[Policy] = [
    ResidualProfiler(),
    ReplayProfiler(threshold=0.0),
    ReplayProfiler(threshold=0.3),
    OURS["residual_reuse"](),
    SkipPolicy(evenly=4),
    SkipPolicy(every=3),
    SkipPolicy(steps=(0, 1, 5)),
    SkipPolicy(profile=PROFILE, calls=5),
    SkipPolicy(profile=PROFILE, threshold=0.2, signal="mean", warmup=2),
    SkipPolicy(profile=REPLAYED),
    TimestepAdjuster(phi=(0.7,) * 10, network_time="actual"),
    TimestepAdjuster(profile=PROFILE),
    TimestepAdjuster(profile=PROFILE, form="difference", signal="max"),
    ErrorLinearizer(profile=PROFILE),
    ErrorLinearizer(profile=PROFILE, granularity="channel"),
    ErrorLinearizer(profile=PROFILE, form="sigmoid"),
    ERTACache(profile=PROFILE, calls=5),
    ERTACache(profile=PROFILE, threshold=0.2, adjuster=True),
    ERTACache(profile=PROFILE, calls=4, linearizer=False, predictor=False),
    ERTACache(
        profile=PROFILE,
        skip=SkipPolicy(every=2),
        adjuster=TimestepAdjuster(form="difference", network_time="actual"),
        linearizer=ErrorLinearizer(granularity="channel"),
    ),
    EASY,
    EasyCache(threshold=0.5, warmup=2, per_sample=False),
    Forecaster(),
    Forecaster(basis="taylor", order=2, over="index", what="residual"),
    Forecaster(basis="hermite", order=2, over="index"),
    Forecaster(basis="adams", order=2),
    Forecaster(order=1, what="x0"),
    OURS["mean_velocity"](),
    OURS["warm_up"](steps=3),
    OURS["last_step"](),
    OURS["max_consecutive"](steps=1),
    OURS["only_between"](high=0.8, low=0.2),
    OURS["budget"](calls=4),
    OURS["every_branch_agrees"](policy=EASY),
]


@parametrize_with_checks(POLICIES)
def test_first_party_policy(check, policy):
    check(policy)


def test_every_registered_policy_is_covered():
    tested = {type(policy) for policy in POLICIES}
    missing = [name for name, cls in OURS.items() if cls not in tested]
    assert missing == []


def test_the_recipes_are_tested_with_every_part_on_and_off():
    parts = [{type(part) for part in flatten([p])} for p in POLICIES if isinstance(p, ERTACache)]
    optional = (OURS["residual_reuse"], TimestepAdjuster, ErrorLinearizer)
    for part in optional:
        assert {part in found for found in parts} == {True, False}
