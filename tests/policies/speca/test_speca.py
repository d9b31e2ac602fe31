"""SpeCa: when steps are full, what is verified, and what that costs."""

from __future__ import annotations

import math
import random

import pytest
import torch

from erta_framework import NoGuidance
from erta_framework.config import build_policies, options_of
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies import speca
from erta_policies.at import At
from erta_policies.forecast import Forecaster
from erta_policies.speca import SpeCa, measure_error
from erta_policies.taylorseer import RefreshInterval
from module_plans import request, sample, visits

STEPS = 12
ALL = {"threshold": 1e9, "decay": 1.0}
NONE = {"threshold": 0.0, "floor": 0.0}


def run(policy, *before, network=None, steps=STEPS):
    given = request(steps=steps)
    return sample(*before, policy, network=network, given=given, guidance=NoGuidance())


def full_steps(found):
    """The steps at which the modules of the first blocks ran."""
    return [call.index for call in found.trace.calls() if call.sites and call.sites["mlp"][0]]


def test_without_verification_it_is_a_forecast_at_every_place():
    found = run(SpeCa(most=3, first=2, order=2, **ALL))
    when = RefreshInterval(interval=4, first=2)
    parts = Select(kind=("attention", "mlp"), depth=":-1")
    what = {"basis": "taylor", "order": 2, "over": "index"}
    last = At(
        sites=Select(kind=("block",), pick="-1"),
        when=when,
        of="residual",
        what=Forecaster(what="residual", **what),
    )
    rest = At(sites=parts, when=when, what=Forecaster(what="output", **what))
    assert torch.equal(found.sample, run(last, rest).sample)
    assert full_steps(found) == [0, 1, 5, 9]


@pytest.mark.parametrize(("least", "expected"), [(1, [0, 1, 2, 5, 8, 11]), (3, [0, 1, 2, 7])])
def test_a_threshold_of_zero_is_full_one_step_after_the_first_that_is_verified(least, expected):
    assert full_steps(run(SpeCa(least=least, **NONE))) == expected


def test_nothing_is_forecast_before_something_is_kept():
    network = BlockFlow()
    counts = visits(network, "blocks.0.attn.qkv", "blocks.2.attn.qkv")
    plain = sample(given=request(steps=3), guidance=NoGuidance())
    found = run(SpeCa(), network=network, steps=3)
    assert torch.equal(found.sample, plain.sample)
    assert [*counts.values()] == [3, 3]


def test_only_the_last_block_runs_to_verify_and_it_counts_as_work():
    network = BlockFlow()
    paths = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn.qkv", "mlp.up")]
    counts = visits(network, *paths)
    found = run(SpeCa(least=2, most=4, first=1, **ALL), network=network)
    # full at 0, 5, 10; verified at 3, 4, 8, 9
    assert full_steps(found) == [0, 5, 10]
    assert [*counts.values()] == [3, 3, 3, 3, 7, 7]
    without = run(SpeCa(least=4, most=4, first=1, **ALL))
    assert torch.equal(found.sample, without.sample)
    block = (run(SpeCa(least=3, most=4, first=1, **ALL)).trace.work - without.trace.work) / 2
    assert found.trace.work - without.trace.work == pytest.approx(4 * block)
    assert block > 0


def decide(errors, limits, least, most):
    """The decisions of the released `cal_type` for the steps after the first, in its counters."""
    last, counter, check, error, full = "full", 0, False, None, [0]
    for index in range(1, len(errors)):
        if last == "full":
            kind, counter, check, error = "forecast", 1, False, None
        else:
            check = counter >= least
            too_large = error is not None and error > limits[index]
            if counter >= most or (too_large and check):
                kind, counter = "full", 0
            else:
                kind, counter = "forecast", counter + 1
        if kind == "full":
            full.append(index)
        elif check:
            error = errors[index]
        last = kind
    return full


@pytest.mark.parametrize("least", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_decisions_are_those_of_the_released_code(monkeypatch, seed, least):
    draw, steps = random.Random(seed), 30
    errors = [draw.uniform(0.0, 0.4) for _ in range(steps)]
    policy = SpeCa(threshold=0.5, decay=0.1, least=least, most=4, first=1)
    asked = []

    def measure(forecast, computed):
        assert not torch.equal(forecast, computed)
        asked.append(current[0])
        return torch.tensor([0.0, errors[current[0]]])

    current = [0]
    monkeypatch.setattr(speca._policy, "measure_error", measure)
    original = SpeCa.find_limit
    verify = SpeCa._verify

    def note(self, action, verified, visit):
        current[0] = visit.step.index
        return verify(self, action, verified, visit)

    monkeypatch.setattr(SpeCa, "_verify", note)
    limits = [original(policy, index, steps) for index in range(steps)]
    assert full_steps(run(policy, steps=steps)) == decide(errors, limits, least, 4)
    assert asked


def test_the_threshold_falls_to_its_floor():
    policy = SpeCa(threshold=0.1, decay=0.01)
    limits = [policy.find_limit(index, 50) for index in range(50)]
    assert limits[0] == pytest.approx(0.1 * 0.01 ** (1 / 50))
    assert limits == sorted(limits, reverse=True)
    assert set(limits[25:]) == {0.01}


def test_an_error_that_is_no_number_is_too_large(monkeypatch):
    nan = lambda forecast, computed: torch.tensor([0.0, math.nan])  # noqa: E731
    monkeypatch.setattr(speca._policy, "measure_error", nan)
    assert full_steps(run(SpeCa(first=1, **ALL))) == [0, 3, 6, 9]


def test_errors_are_relative_to_every_number():
    torch.manual_seed(0)
    a, b = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    expected = [((x - y).abs() / (y.abs() + 1e-10)).mean() for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(measure_error(a, b), torch.stack(expected))
    assert measure_error(a.half(), b.half()).dtype == torch.float32


def test_beside_a_rule_that_leaves_out_steps_ages_count():
    # steps 1, 3, 5, 7, 9 are left out
    found = run(SpeCa(least=3, most=3, first=1, order=1, **ALL), AlternateSteps())
    assert full_steps(found) == [0, 4, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold=-0.1"),
        ({"decay": 0.0}, "decay=0"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"floor": -1.0}, "floor=-1"),
        ({"least": 0}, "least=0"),
        ({"least": 4, "most": 3}, "least=4, most=3"),
        ({"first": 0}, "first=0"),
        ({"order": 9}, "order of Forecaster is 9"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(PolicyError, match=message):
        SpeCa(**options)


def test_a_configuration_says_the_same():
    (policy,) = build_policies([{"speca": {"threshold": 0.3, "most": 4}}])
    (again,) = build_policies([{"speca": options_of(policy)}])
    assert repr(again) == repr(policy) == repr(SpeCa(threshold=0.3, most=4))
