"""Forecasts: exact weights, orders of convergence, and the solvers they equal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Request, SamplingLoop
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2
from erta_framework.testing import AffineFlow, GaussianMixtureFlow, toy_run
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster, MeanVelocity, adams, hermite, newton, taylor

nodes = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=4, unique=True).map(
    lambda values: sorted(values, reverse=True)
)


@given(nodes, st.floats(-30, 30), st.integers(0, 3))
def test_newton_is_exact_on_polynomials_of_its_degree(where, at, power):
    weights = newton(where, at, at + 1.0)
    if power < len(where):
        value = sum(w * n**power for w, n in zip(weights, where, strict=True))
        assert value == pytest.approx(at**power, rel=1e-6, abs=1e-4)


@given(nodes, st.floats(-30, 30), st.floats(0.1, 3.0), st.integers(0, 3))
def test_adams_is_the_exact_mean_of_polynomials_of_its_degree(where, start, length, power):
    end = start + length
    weights = adams(where, start, end)
    if power < len(where):
        value = sum(w * n**power for w, n in zip(weights, where, strict=True))
        mean = (end ** (power + 1) - start ** (power + 1)) / ((power + 1) * length)
        assert value == pytest.approx(mean, rel=1e-5, abs=1e-3)


@given(nodes, st.floats(-30, 30))
def test_every_basis_keeps_constants(where, at):
    for weights in (newton(where, at, at + 1), taylor(where, at, at + 1)):
        assert sum(weights) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("rule", [newton, taylor])
def test_a_line_is_continued_exactly(rule):
    weights = rule([10.0, 5.0], 13.0, 14.0)
    assert weights == pytest.approx((1.6, -0.6))


def test_taylor_is_biased_on_a_parabola_and_newton_is_not():
    """TaylorSeer on t^2 at interval N = 5 is off by exactly -5 k; derived, not published."""
    where = [20.0, 15.0, 10.0]
    for k in range(1, 5):
        squares = [n * n for n in where]
        for rule, error in ((taylor, -5.0 * k), (newton, 0.0)):
            weights = rule(where, 20.0 + k, 21.0 + k)
            value = sum(w * s for w, s in zip(weights, squares, strict=True))
            assert value - (20.0 + k) ** 2 == pytest.approx(error, abs=1e-9)


@pytest.mark.parametrize(("scale", "factor"), [(0.5, 0.5), (0.6, 0.72), (0.7, 0.98)])
def test_hermite_of_order_one_is_a_damped_line(scale, factor):
    """The effective slope 2 s^2 of HiCache, arXiv 2508.16984."""
    weights = hermite([6.0, 3.0], 8.0, 9.0, scale)
    line = taylor([6.0, 3.0], 8.0, 9.0)
    assert weights[1] == pytest.approx(factor * line[1])
    assert hermite([6.0, 3.0], 8.0, 9.0, math.sqrt(0.5)) == pytest.approx(line)


def test_hermite_of_order_two():
    """Coefficients 2 s^2 k and (2 s^4 k^2 - s^2) of the first and second difference."""
    scale, k = 0.6, 2.0
    weights = hermite([2.0, 1.0, 0.0], 2.0 + k, 5.0, scale)
    first, second = 2 * scale**2 * k, (4 * scale**2 * k**2 - 2) * scale**2 / 2
    differences = ((1.0, -1.0, 0.0), (1.0, -2.0, 1.0))
    expected = [
        (1.0 if j == 0 else 0.0) + first * differences[0][j] + second * differences[1][j]
        for j in range(3)
    ]
    assert weights == pytest.approx(expected)
    assert second == pytest.approx(2 * scale**4 * k**2 - scale**2)


def sampled(policies, steps, solver=None, sigmas=None, toy=None):
    toy = toy or AffineFlow((3, 2, 4, 4), mean=0.7, std=0.6)
    solver = solver or FlowEuler()
    request = Request(
        latents=torch.randn(
            2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        ),
        cond=toy.encode(["a", "b"]),
        schedule=solver.schedule(steps, sigmas),
    )
    return SamplingLoop(Engine(policies), solver, NoGuidance()).run(toy, request)


def test_mean_velocity_on_skipped_steps_is_adams_bashforth_2_on_the_computed_grid():
    """Variable-step Adams-Bashforth 2, the textbook method; that MeanVelocity is it is derived."""
    computed = (0, 1, 3, 4, 7, 11, 12, 17, 19)
    nominal = FlowEuler().schedule(20).sigmas
    skipping = sampled([SkipPolicy(steps=computed), MeanVelocity()], 20)
    grid = [nominal[i] for i in computed] + [nominal[-1]]
    solver = sampled([], len(computed), FlowAdamsBashforth2(), grid)
    assert skipping.trace.computed_steps == computed
    torch.testing.assert_close(skipping.sample, solver.sample, rtol=1e-12, atol=1e-12)


def test_plain_output_reuse_is_euler_on_the_computed_grid():
    computed = (0, 2, 5, 6, 9)
    nominal = FlowEuler().schedule(10).sigmas
    reuse = sampled([SkipPolicy(steps=computed), Forecaster(order=0)], 10)
    grid = [nominal[i] for i in computed] + [nominal[-1]]
    euler = sampled([], len(computed), FlowEuler(), grid)
    torch.testing.assert_close(reuse.sample, euler.sample, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("basis", ["newton", "adams"])
def test_order_of_convergence(basis, order):
    """The error of one forecast falls with the distance to the power order + 1."""

    def error(width: float) -> float:
        where = [1.0 - k * width for k in range(order + 1)]
        start, end = 1.0 + 0.4 * width, 1.0 + 0.9 * width
        rule = {"newton": newton, "adams": adams}[basis]
        value = sum(w * math.exp(n) for w, n in zip(rule(where, start, end), where, strict=True))
        true = (
            math.exp(start)
            if basis == "newton"
            else (math.exp(end) - math.exp(start)) / (end - start)
        )
        return abs(value - true)

    rates = [math.log2(error(w) / error(w / 2)) for w in (0.1, 0.05)]
    assert rates[-1] == pytest.approx(order + 1, abs=0.1)


@pytest.mark.parametrize("what", ["residual", "output", "x0"])
def test_a_constant_quantity_is_kept_whatever_the_order(what):
    result = toy_run([SkipPolicy(evenly=5), Forecaster(order=0, what=what)])
    assert result.trace.network_calls == 10
    assert torch.isfinite(result.sample).all()


def test_order_zero_of_the_residual_is_residual_reuse():
    plain = toy_run([SkipPolicy(evenly=5)])
    same = toy_run([SkipPolicy(evenly=5), Forecaster(order=0, what="residual")])
    assert torch.equal(plain.sample, same.sample)


def test_x0_of_a_point_mass_is_exact():
    """Where all data is one point, every velocity points at it: one evaluation is enough."""

    class Point:
        def __call__(self, x, timestep, embeds):
            return (x - 2.0) / (timestep.reshape(-1, *[1] * (x.ndim - 1)) / 1000.0)

    request = Request(
        latents=torch.randn(2, 3, generator=torch.Generator().manual_seed(1)),
        cond=torch.zeros(2, 1),
        schedule=FlowEuler().schedule(12),
    )
    policies = [SkipPolicy(steps=(0, 11)), Forecaster(order=0, what="x0")]
    result = SamplingLoop(Engine(policies), FlowEuler(), NoGuidance()).run(Point(), request)
    assert result.trace.computed_steps == (0, 11)
    torch.testing.assert_close(result.sample, torch.full((2, 3), 2.0), rtol=0, atol=1e-5)


def test_forecasts_beat_plain_reuse_on_a_smooth_flow():
    toy = GaussianMixtureFlow((3, 2, 4, 4))
    full = sampled([], 40, toy=toy).sample

    def error(policy):
        return float((sampled([SkipPolicy(evenly=20), policy], 40, toy=toy).sample - full).norm())

    plain = error(Forecaster(order=0, what="residual"))
    for basis in ("newton", "taylor", "adams"):
        assert error(Forecaster(basis=basis, order=1)) < 0.5 * plain


def test_the_order_is_what_the_history_allows():
    seen = []

    class Watching(Forecaster):
        def weights(self, nodes, start, end):
            seen.append(len(nodes))
            return super().weights(nodes, start, end)

    toy_run([SkipPolicy(steps=(0, 2, 4, 9)), Watching(order=2)])
    assert seen == [1, 1, 2, 2] + [3] * 8


def test_what_cannot_be_is_refused():
    with pytest.raises(PolicyError, match="order of Forecaster is 9"):
        Forecaster(order=9)
    with pytest.raises(PolicyError, match="adams basis averages the output"):
        Forecaster(basis="adams", over="index")
    with pytest.raises(PolicyError, match="scale of Forecaster"):
        Forecaster(scale=0.0)
    with pytest.raises(PolicyError, match="order of MeanVelocity"):
        MeanVelocity(order=-1)
    with pytest.raises(CapabilityError, match=r"Forecaster.*requires velocity"):
        SamplingLoop(Engine([Forecaster(what="x0")]), DDIM(), NoGuidance())
    with pytest.raises(CapabilityError, match=r"MeanVelocity.*requires first_order"):
        SamplingLoop(Engine([MeanVelocity()]), FlowAdamsBashforth2(), CFG())
