"""PAB: ranges, the window of timesteps, MLPs, and settings that cannot work."""

from __future__ import annotations

import pytest
import torch

from erta_framework import NoGuidance
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.pab import PAB
from module_plans import every, plan, request, sample, visits

STEPS = 10
EVERYWHERE = (-1.0, 2000.0)
TIMES = [1000, 964, 923, 875, 818, 750, 667, 562, 429, 250]
"""The toy's timesteps, rounded."""


def ran(policy, *before, kind="attention", steps=STEPS):
    """The steps at which places of a kind ran."""
    found = sample(*before, policy, given=request(steps=steps), guidance=NoGuidance())
    return [c.index for c in found.trace.calls() if c.sites and c.sites[kind][0]]


@pytest.mark.parametrize("reach", [1, 2, 3, 6])
def test_one_step_in_its_range_runs(reach):
    assert ran(PAB(spatial=reach, window=EVERYWHERE)) == list(range(0, STEPS, reach))


def published(times, reach, low, high):
    """`if_broadcast_spatial` of VideoSys: the count goes on outside of the window as well."""
    return [i for i, t in enumerate(times) if not (i % reach != 0 and low < t < high)]


@pytest.mark.parametrize("window", [(100, 800), (450, 930), (300, 700), (260, 400)])
@pytest.mark.parametrize("reach", [2, 3, 4])
def test_outside_of_the_window_every_step_runs(window, reach):
    assert ran(PAB(spatial=reach, window=window)) == published(TIMES, reach, *window)


def test_what_runs_is_reused():
    given = request(steps=STEPS)
    found = sample(PAB(spatial=3, window=EVERYWHERE), given=given)
    same = sample(plan(every(3), "attention"), given=given)
    assert torch.equal(found.sample, same.sample)


def test_a_window_that_nothing_is_in_changes_no_bit():
    given = request(steps=STEPS)
    found = sample(PAB(spatial=3, window=(260, 400)), given=given)
    assert torch.equal(found.sample, sample(given=given).sample)


def test_where_a_rule_leaves_out_steps_the_range_is_made_up_for():
    # steps 1, 3, 5, 7 are left out; 3 and 6 are due
    assert ran(PAB(spatial=3, window=EVERYWHERE), AlternateSteps()) == [0, 4, 6, 9]


def test_mlps_run_at_listed_timesteps_and_are_reused_for_the_next_steps():
    policy = PAB(mlp_times=(923, 667), mlp_skip=2, mlp_depth=":2")
    assert ran(policy, kind="mlp") == [0, 1, 2, 5, 6, 9]
    network = BlockFlow()
    counts = visits(network, *(f"blocks.{k}.mlp.up" for k in range(3)), "blocks.0.attn.qkv")
    sample(policy, network=network, given=request(steps=STEPS), guidance=NoGuidance())
    assert [*counts.values()] == [6, 6, 10, 10]


def test_an_mlp_whose_listed_step_was_left_out_is_kept_at_the_next():
    # steps 1, 3, 5, 7 are left out: 875 is step 3, so 4 keeps and 5 is left out
    assert ran(PAB(mlp_times=(875,), mlp_skip=3), AlternateSteps(), kind="mlp") == [0, 2, 4, 8, 9]


def test_listed_timesteps_overlap():
    policy = PAB(mlp_times=(923, 875), mlp_skip=2)
    assert ran(policy, kind="mlp") == [0, 1, 2, 3, 6, 7, 8, 9]


def test_a_timestep_that_is_none_of_the_schedule_is_refused():
    with pytest.raises(PolicyError, match=r"mlp_times of PAB has 676.*\(1000, 964"):
        ran(PAB(mlp_times=(964, 676)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "PAB broadcasts nothing"),
        ({"spatial": 0}, "spatial of PAB is 0"),
        ({"cross": -2}, "cross of PAB is -2"),
        ({"spatial": 2, "window": (800, 100)}, "the lower timestep comes first"),
        ({"mlp_times": (700,), "mlp_skip": 0}, "mlp_skip of PAB is 0"),
        ({"mlp_times": (700,), "mlp_depth": "a"}, "depth is 'a'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(PolicyError, match=message):
        PAB(**options)


def test_a_configuration_says_the_same():
    # Latte's of VideoSys; its blocks alternate in two lists
    written = {
        "spatial": 2,
        "temporal": 3,
        "cross": 6,
        "window": [100, 800],
        "mlp_times": [720, 640, 560, 480, 400],
        "mlp_depth": "0:10",
    }
    (policy,) = build_policies([{"pab": written}])
    assert policy.window == (100, 800)
    assert [select.kind for select in policy.selects] == [("attention", "cross"), ("mlp",)]
    (again,) = build_policies([{"pab": options_of(policy)}])
    assert repr(again) == repr(policy)
