"""Edge costs against trajectories kept by hand, and the plans that follow from them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, FlowEuler, NoGuidance, Policy, Profile, hookimpl
from erta_framework.errors import PolicyError, ProfileError
from erta_framework.testing import toy_profile, toy_run
from erta_framework.testing._setup import FLOW
from erta_policies.ertacache import ResidualProfiler, pair_errors
from erta_policies.planning import plan_all_calls, plan_steps, price_edges

STEPS = 10
PROFILE = toy_profile(ResidualProfiler())
approx = partial(pytest.approx, rel=1e-3, abs=1e-5)
COSTS = ("reuse", "grouping", "integrated", "corrected", "forecast")


class Keep(Policy):
    """Keeps inputs and outputs of every branch."""

    kept: dict

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        self.kept.setdefault(call.branch, []).append((call.x.double(), call.compute().double()))
        return output


def recorded(setup) -> tuple[dict[str, list[tuple[Tensor, Tensor]]], Profile, tuple[float, ...]]:
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    result = toy_run([Keep(kept=kept), ResidualProfiler()], seed=11, setup=setup)
    return kept, result.emitted[0], setup.solver.schedule(setup.num_steps).sigmas


@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=2.0)])
def test_costs_are_those_of_whole_trajectories(guidance):
    setup = type(FLOW)(toy=FLOW.toy, solver=FlowEuler(), guidance=guidance, num_steps=STEPS)
    kept, profile, sigma = recorded(setup)

    def largest(value):
        return max(float(value(branch)) for branch in kept)

    def residual(branch, step):
        x, v = kept[branch][step]
        return v - x

    def rms(value):
        return value.square().mean().sqrt()

    def line(branch, before, start, step):
        a = (sigma[step] - sigma[start]) / (sigma[start] - sigma[before])
        v = [output for _, output in kept[branch]]
        return (1 + a) * v[start] - a * v[before] - v[step]

    def between(start, length):
        """The steps that an edge answers without the network, and its reach in sigma."""
        return [(t, sigma[t + 1] - sigma[t]) for t in range(start + 1, start + length)]

    def absolute(start, length):
        return sum(
            largest(partial(lambda b, t: (residual(b, start) - residual(b, t)).abs().mean(), t=t))
            for t, _ in between(start, length)
        )

    def left(start, length):
        def of(b):
            gaps = (size * (residual(b, start) - residual(b, t)) for t, size in spans)
            return rms(sum(gaps, torch.zeros(1)))

        spans = between(start, length)
        return largest(of)

    def rectified(start, length):
        def of(b, t):
            x, v = kept[b][t]
            reused = (x + residual(b, start)).flatten()
            error = reused - v.flatten()
            terms = torch.stack([reused, torch.ones_like(reused)], dim=1)
            return rms(error - terms @ torch.linalg.lstsq(terms, error).solution)

        return sum(largest(partial(of, t=t)) for t, _ in between(start, length))

    def lines(before, start, length):
        return sum(
            abs(size) * largest(partial(lambda b, t: rms(line(b, before, start, t)), t=t))
            for t, size in between(start, length)
        )

    reuse, grouping = price_edges(profile, "reuse"), price_edges(profile, "grouping")
    integrated, forecast = price_edges(profile, "integrated"), price_edges(profile, "forecast")
    corrected = price_edges(profile, "corrected")
    errors = pair_errors(profile)
    for start in range(STEPS):
        for length in range(1, STEPS - start + 1):
            relative = sum(float(errors[start, t]) for t, _ in between(start, length))
            assert float(reuse[start, length - 1]) == approx(relative)
            assert float(grouping[start, length - 1]) == approx(absolute(start, length))
            assert float(integrated[start, length - 1]) == approx(left(start, length))
            assert float(corrected[start, length - 1]) == approx(rectified(start, length))
            for gap in range(1, start + 1):
                expected = lines(start - gap, start, length)
                assert float(forecast[gap - 1, start, length - 1]) == approx(expected)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("monotone", [False, True])
def test_the_front_is_monotone_and_every_step_is_free(cost, monotone):
    plans = plan_all_calls(PROFILE, cost, monotone=monotone)
    totals = [plans[calls].predicted for calls in sorted(plans)]
    assert all(a >= b for a, b in pairwise(totals))
    assert sorted(plans)[-1] == STEPS
    assert plans[STEPS].predicted == 0.0
    assert plan_steps(PROFILE, STEPS, cost, monotone=monotone) == tuple(range(STEPS))
    assert plan_steps(PROFILE, 5, cost) == plan_steps(PROFILE, 5, cost)


def test_limits_are_kept():
    for path in plan_all_calls(PROFILE, "reuse", longest=3).values():
        assert max(b - a for a, b in pairwise(path.computed)) <= 3
    with pytest.raises(ProfileError, match=r"2 network calls cannot span .* at least 4 are needed"):
        plan_steps(PROFILE, 2, longest=3)


def test_a_profile_of_an_earlier_version_plans_by_what_it_has():
    old = {
        name: value
        for name, value in PROFILE.statistics.items()
        if name not in ("distance", "velocity", "sigma")
    }
    earlier = Profile(PROFILE.kind, PROFILE.fingerprint, old, PROFILE.samples)
    for cost in ("reuse", "corrected"):
        assert plan_steps(earlier, 5, cost) == plan_steps(PROFILE, 5, cost)
    for cost, name in (("grouping", "distance"), ("integrated", "sigma"), ("forecast", "velocity")):
        with pytest.raises(ProfileError, match=f"has no '{name}'.*calibrate again"):
            plan_steps(earlier, 5, cost)


def test_a_branch_that_is_absent_cannot_be_reused_from():
    guidance = CFG(scale=2.0, start=0.5)
    setup = type(FLOW)(toy=FLOW.toy, solver=FlowEuler(), guidance=guidance, num_steps=STEPS)
    profile = toy_profile(ResidualProfiler(), setup=setup)
    for cost in COSTS:
        for path in plan_all_calls(profile, cost).values():
            assert 5 in path.computed  # the first step of the second branch


def test_unknown_costs_are_refused():
    with pytest.raises(PolicyError, match="no edge cost 'speed'"):
        price_edges(PROFILE, "speed")
    with pytest.raises(PolicyError, match="longest edge is 0"):
        price_edges(PROFILE, longest=0)
