"""DeepCache: published schedules, ages, and settings that cannot work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erta_framework.config import build_policies, options_of
from erta_framework.errors import ConfigError, PolicyError
from erta_framework.modules import Cut
from erta_policies.deepcache import CenteredSteps, DeepCache, center_steps
from erta_policies.easycache import EasyCache
from erta_policies.ertacache import SkipPolicy

RELEASED = [
    # what `sample_from_quad_center` of horseee/DeepCache returns: steps, N, center, power
    (50, 5, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43]),
    (50, 3, 15, 1.4, [0, 3, 6, 8, 11, 13, 15, 17, 20, 22, 25, 28, 32, 35, 38, 42, 46]),
    (50, 2, 15, 1.4, [0, 2, 4, 6, 7, 9, 11, 12, 14, 15, 17, 18, 20, 22, 24, 26, 28, 30, 32, 35, 37,
                      39, 42, 44, 47]),
    (50, 10, 15, 1.4, [0, 9, 17, 26, 37]),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "interval", "center", "power", "computed"), RELEASED)
def test_the_released_schedules(steps, interval, center, power, computed):
    policy = CenteredSteps(interval=interval, center=center, power=power)
    assert list(policy.plan(steps).computed) == computed


def test_the_formula_with_signs_has_other_early_steps():
    signed = CenteredSteps(formula="signed").plan(50).computed
    assert signed == (0, 6, 11, 14, 15, 19, 24, 29, 35, 42)
    assert signed != CenteredSteps().plan(50).computed


def test_around_step_0_both_formulas_are_one():
    found = center_steps(50, 10, 0, 1.2)
    assert found == center_steps(50, 10, 0, 1.2, "signed")
    assert found[5] - found[0] < found[9] - found[4]


@given(
    steps=st.integers(8, 120),
    interval=st.integers(1, 12),
    center=st.integers(0, 30),
    power=st.floats(1.05, 2.0),
    formula=st.sampled_from(["release", "signed"]),
)
def test_one_step_in_so_many_is_computed_or_there_are_no_such_steps(
    steps, interval, center, power, formula
):
    try:
        policy = CenteredSteps(interval=interval, center=center, power=power, formula=formula)
        found = policy.plan(steps).computed
    except PolicyError:
        return
    assert found[0] == 0
    assert list(found) == sorted(set(found))
    assert found[-1] < steps
    assert len(found) == -(-steps // interval)


def test_a_schedule_that_is_not_there_is_refused_before_sampling():
    with pytest.raises(PolicyError, match="center 15, but there are 12 steps"):
        CenteredSteps().plan(12)
    with pytest.raises(PolicyError, match=r"no 25 of 50 steps lie around step 25.*even schedule"):
        CenteredSteps(interval=2, center=25).plan(50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval of DeepCache is 0"),
        ({"branch": -1}, "branch of Cut is -1"),
        ({"interval": 3, "when": CenteredSteps()}, "give one of them"),
        ({"when": EasyCache(threshold=0.1)}, "whose steps are not known before sampling"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(PolicyError, match=message):
        DeepCache(**options)


@pytest.mark.parametrize("options", [{"interval": 0}, {"center": -1}, {"power": 1.0}])
def test_a_schedule_out_of_range_is_refused(options):
    with pytest.raises(PolicyError, match="at least 1, at least 0, and above 1"):
        CenteredSteps(**options)


def test_it_keeps_one_output_of_one_cut():
    policy = DeepCache(branch=2)
    assert policy.selects == (Cut(branch=2),)
    assert policy.keeps() == 1
    assert policy.traits.static


def test_a_configuration_says_the_same():
    even, centered = build_policies(
        [
            {"deepcache": {"interval": 5, "branch": 1}},
            {"deepcache": {"when": {"centered_steps": {"interval": 5, "formula": "signed"}}}},
        ]
    )
    assert (even.interval, even.branch) == (5, 1)
    assert centered.when.formula == "signed"
    for policy in (even, centered):
        (again,) = build_policies([{"deepcache": options_of(policy)}])
        assert repr(again) == repr(policy)
    with pytest.raises(ConfigError, match="cache_branch_id"):
        build_policies([{"deepcache": {"cache_branch_id": 1}}])


def test_its_schedule_serves_as_a_step_rule():
    assert CenteredSteps(interval=5).plan(50).calls == SkipPolicy(evenly=10).plan(50).calls
