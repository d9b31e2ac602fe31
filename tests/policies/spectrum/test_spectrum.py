"""Spectrum: the published steps, and a forecast that is a ridge fit written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import NoGuidance, Policy, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import PolicyError, ProfileError
from erta_framework.testing import BlockFlow, GaussianMixtureFlow, toy_run
from erta_policies.forecast import Forecaster, newton
from erta_policies.spectrum import ChebyshevForecast, GrowingWindow, Spectrum
from module_plans import request, sample, visits

STARTS = (0, 1, 2, 3, 4, 6)
GOLDEN = {
    0.75: (*STARTS, 8, 11, 15, 20, 25, 31, 38, 46),
    1.0: (*STARTS, 9, 13, 18, 24, 31, 39, 48),
    1.5: (*STARTS, 9, 14, 20, 28, 37, 48),
    3.0: (*STARTS, 11, 19, 30, 44),
}
steps = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=8, unique=True).map(
    lambda found: sorted(found, reverse=True)
)


# ---------------------------------------------------------------------------- the schedule
@pytest.mark.parametrize("growth", GOLDEN)
def test_golden_schedules_of_50_steps(growth):
    assert GrowingWindow(growth=growth).plan(50).computed == GOLDEN[growth]


def released(growth, window, first, num_steps):
    """The counters of the released code, written out."""
    found, ws, reused = [], window, 0
    for index in range(num_steps):
        actual = True
        if index >= first:
            actual = (reused + 1) % math.floor(ws) == 0
            if actual:
                ws = round(ws + growth, 3)
        reused = 0 if actual else reused + 1
        if actual:
            found.append(index)
    return tuple(found)


@given(st.floats(0, 5), st.floats(1, 6), st.integers(1, 8), st.integers(1, 60))
def test_the_rule_is_the_released_one(growth, window, first, num_steps):
    rule = GrowingWindow(growth=growth, window=window, first=first)
    assert rule.computed_steps(num_steps) == released(growth, window, first, num_steps)


@pytest.mark.parametrize("calls", [7, 10, 12, 14, 20, 27])
def test_a_budget_is_kept_and_used(calls):
    computed = GrowingWindow(budget={"calls": calls}).computed_steps(50)
    assert len(computed) == calls


def test_a_budget_below_the_first_steps_is_refused():
    with pytest.raises(ProfileError, match="cannot be scheduled in 4 network calls"):
        GrowingWindow(budget={"calls": 4}).computed_steps(50)


# ---------------------------------------------------------------------------- the forecast
def fit(nodes, at, values, degree, ridge, span, free_mean=False):
    """Ridge regression by torch, on the values themselves."""

    def basis(places):
        tau = 2 * torch.tensor(places, dtype=torch.float64) / span - 1
        columns = [torch.ones_like(tau), tau]
        for _ in range(2, degree + 1):
            columns.append(2 * tau * columns[-1] - columns[-2])
        return torch.stack(columns[: degree + 1], dim=1)

    design, penalty = basis(nodes), ridge * torch.eye(degree + 1, dtype=torch.float64)
    if free_mean:
        penalty[0, 0] = 0
    coefficients = torch.linalg.solve(design.T @ design + penalty, design.T @ values)
    return (basis([at]) @ coefficients)[0]


@given(steps, st.floats(0, 55), st.integers(0, 5), st.floats(0.01, 2), st.booleans())
def test_the_weights_are_those_of_the_ridge_fit(nodes, at, degree, ridge, free_mean):
    forecast = ChebyshevForecast(degree=degree, ridge=ridge, blend=1.0, free_mean=free_mean)
    weights = forecast.weights(nodes, at, at + 1)
    values = torch.randn(
        len(nodes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    made = torch.tensor(weights, dtype=torch.float64) @ values
    assert torch.allclose(made, fit(nodes, at, values, degree, ridge, 50.0, free_mean), atol=1e-8)


@given(steps, st.floats(0, 55))
def test_no_fit_is_the_line(nodes, at):
    weights = ChebyshevForecast(blend=0.0).weights(nodes, at, at + 1)
    assert weights[:2] == newton(nodes[:2], at, at + 1)
    assert set(weights[2:]) <= {0.0}


@given(steps.filter(lambda nodes: len(nodes) == 4), st.floats(0, 55))
def test_without_a_ridge_it_is_the_polynomial_through_as_many(nodes, at):
    weights = ChebyshevForecast(degree=3, ridge=1e-12, blend=1.0).weights(nodes, at, at + 1)
    polynomial = newton(nodes, at, at + 1)
    largest = max(map(abs, polynomial))
    assert weights == pytest.approx(polynomial, rel=1e-2, abs=1e-2 * largest)


@given(steps, st.floats(0, 55), st.floats(0, 1))
def test_a_free_mean_continues_constants_and_the_published_fit_does_not(nodes, at, blend):
    free = ChebyshevForecast(free_mean=True, blend=blend)
    assert sum(free.weights(nodes, at, at + 1)) == pytest.approx(1.0, abs=1e-8)
    plain = ChebyshevForecast(blend=1.0, degree=0)
    assert sum(plain.weights(nodes, at, at + 1)) == pytest.approx(len(nodes) / (len(nodes) + 0.1))


# -------------------------------------------------------------------------------- in a run
class Record(Policy):
    """Notes the outputs of one branch."""

    seen: dict

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        self.seen[step.index, call.branch] = (call.ran, output.double())
        return output


def test_reused_outputs_are_the_fit_and_the_line():
    seen = {}
    recipe = Spectrum(growth=2.0, first=3, fitted=4, blend=0.7)
    toy_run([Record(seen=seen), recipe])
    computed = []
    for index in range(10):
        ran, output = seen[index, "cond"]
        if ran:
            computed.insert(0, (float(index), output))
            continue
        nodes = [node for node, _ in computed[:4]]
        values = torch.stack([value.flatten() for _, value in computed[:4]])
        ridge = fit(nodes, float(index), values, 4, 0.1, 50.0)
        line = torch.tensor(newton(nodes[:2], index, 0.0), dtype=torch.float64) @ values[:2]
        made = 0.7 * ridge + 0.3 * line
        assert torch.allclose(output.flatten(), made, rtol=1e-4, atol=1e-5)
    assert 0 < len(computed) < 10


def test_without_the_fit_it_is_a_line_on_those_steps():
    recipe = Spectrum(growth=1.0, first=2, blend=0.0)
    line = Forecaster(basis="newton", order=1, over="index")
    written = [GrowingWindow(growth=1.0, first=2), line]
    assert torch.equal(toy_run([recipe]).sample, toy_run(written).sample)


def test_calls_are_those_of_the_schedule():
    toy = GaussianMixtureFlow()
    from erta_framework import Engine
    from erta_framework.testing._setup import FLOW

    recipe = Spectrum(budget={"calls": 6})
    result = FLOW.run(Engine([recipe]), FLOW.request(), toy)
    assert toy.calls == 2 * 6 == result.trace.network_calls


def test_level_blocks_keeps_the_stack_and_runs_the_rest():
    network = BlockFlow()
    counts = visits(network, "blocks.0.mlp.up", "blocks.2.attn.qkv", "head")
    recipe = Spectrum(level="blocks", first=2, growth=1.0)
    given = request(steps=8)
    result = sample(recipe, network=network, given=given, guidance=NoGuidance())
    computed = len(GrowingWindow(first=2, growth=1.0).computed_steps(8))
    assert counts == {"blocks.0.mlp.up": computed, "blocks.2.attn.qkv": computed, "head": 8}
    assert result.sample.isfinite().all()


def test_level_blocks_takes_a_budget_of_work():
    given = request(steps=12)
    trace = sample(Spectrum(level="blocks", first=2, budget={"work": 6}), given=given).trace
    assert trace.work <= 6 * 2 * 2 + 1e-6
    with pytest.raises(PolicyError, match="budget of work"):
        Spectrum(level="blocks", budget={"calls": 6})


def test_every_step_in_the_window_changes_nothing():
    recipe = Spectrum(window=1.0, growth=0.0, first=1)
    assert torch.equal(toy_run([recipe]).sample, toy_run([]).sample)


@pytest.mark.parametrize(
    ("cls", "options", "match"),
    [
        (GrowingWindow, {"growth": -1.0}, "at least 0"),
        (GrowingWindow, {"window": 0.5}, "at least 1"),
        (ChebyshevForecast, {"ridge": 0.0}, "above 0"),
        (ChebyshevForecast, {"blend": 1.5}, "within 0 and 1"),
        (ChebyshevForecast, {"window": 1}, "at least 2"),
        (Spectrum, {"level": "modules"}, "'output' or 'blocks'"),
        (Spectrum, {"growth": 1.0, "budget": {"calls": 9}}, "give one of the two"),
    ],
)
def test_settings_are_refused(cls, options, match):
    with pytest.raises(PolicyError, match=match):
        cls(**options)


def test_configuration():
    recipe, at = build_policies(
        [
            {"spectrum": {"growth": 1.5, "blend": 1.0}},
            {
                "at": {
                    "sites": {"kind": ["mlp"]},
                    "when": {"growing_window": {"growth": 1.0}},
                    "what": {"chebyshev_forecast": {"over": "index"}},
                }
            },
        ]
    )
    assert (recipe.growth, at.what.window) == (1.5, 10)
