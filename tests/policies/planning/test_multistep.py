"""The schedule for combinations of several outputs: errors from distances, and the search."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import CFG, Engine, FlowEuler, Profile, Sampler
from erta_framework.errors import PolicyError, ProfileError, ProfileMismatchError
from erta_framework.testing import GaussianMixtureFlow, toy_profile, toy_run
from erta_policies.ertacache import ResidualProfiler, ResidualReuse, SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.planning import MultistepSchedule
from erta_policies.planning._combinations import CombinationErrors, search_shifts, solve_combination

STEPS = 10
PROFILE = toy_profile(ResidualProfiler())


def squared(points: torch.Tensor) -> torch.Tensor:
    """Squared distances of all pairs of points `[T, D]`."""
    return torch.cdist(points, points).square()


# ------------------------------------------------------------------------- the errors
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_the_error_is_that_of_least_squares_with_weights_that_add_up_to_one(
    seed: int, count: int
) -> None:
    """Distances alone give what solving for the points gives."""
    points = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)).double()
    nodes = list(range(count))
    errors = solve_combination(squared(points), nodes)
    newest = points[nodes[-1]]
    spread = (points[nodes[:-1]] - newest).T
    for step in range(count, 7):
        target = points[step] - newest
        if count > 1:
            weights = torch.linalg.lstsq(spread, target).solution
            target = target - spread @ weights
        exact = float(target.square().sum())
        assert float(errors[step]) == pytest.approx(exact, rel=0.02, abs=1e-3)
        assert float(errors[step]) >= exact - 1e-9  # the ridge only adds


def test_more_outputs_never_err_more() -> None:
    found = [CombinationErrors.of(PROFILE, depth, 0.0, "max") for depth in (1, 2, 4)]
    steps = (0, 2, 4, 7)
    totals = [errors.total(steps) for errors in found]
    assert totals == sorted(totals, reverse=True)
    assert found[0].total(range(STEPS)) == 0.0


def test_one_output_is_the_distance_of_the_profile() -> None:
    """With depth 1 a gap costs the root mean square distances that the profile holds."""
    errors = CombinationErrors.of(PROFILE, 1, 0.0, "max")
    own = [error**2 for error in errors.errors_after((2,))]
    held = (PROFILE.statistics["velocity"] / PROFILE.samples).amax(0)
    assert own[3:] == pytest.approx(held[2, 3:].tolist())


def test_what_goes_wrong_early_counts_more() -> None:
    even, early = (CombinationErrors.of(PROFILE, 4, growth, "max") for growth in (0.0, 6.0))
    assert early.weights[0] == pytest.approx(torch.tensor(6.0).exp().item())
    assert even.weights == [1.0] * STEPS


# ------------------------------------------------------------------------- the search
@pytest.mark.parametrize("calls", [3, 4])
def test_no_move_of_one_step_is_better_and_nothing_is_far_behind_the_best(calls: int) -> None:
    errors = CombinationErrors.of(PROFILE, 4, 3.0, "max")
    policy = MultistepSchedule(profile=PROFILE, budget={"calls": calls})
    steps = policy.plan(STEPS).computed
    assert len(steps) == calls
    assert steps[0] == 0
    assert search_shifts(errors, steps) == steps
    every = [(0, *rest) for rest in combinations(range(1, STEPS), calls - 1)]
    assert errors.total(steps) <= 1.1 * min(map(errors.total, every))
    assert policy.plan(STEPS).predicted == pytest.approx(errors.total(steps) ** 0.5)


def test_plans_are_the_same_every_time_and_run_as_planned() -> None:
    for budget, calls in (({"calls": 1}, 1), ({"calls": 4}, 4), ({"speedup": 2.0}, 5)):
        one, two = (MultistepSchedule(profile=PROFILE, budget=budget) for _ in range(2))
        assert one.plan(STEPS).computed == two.plan(STEPS).computed
        ran = toy_run([one, ResidualReuse()])
        assert ran.trace.computed_steps == one.plan(STEPS).computed
        assert len(ran.trace.computed_steps) == calls


def test_a_parabola_is_better_on_its_own_plan_than_on_an_even_one() -> None:
    """On a flow whose velocity is known, with the predictor that the plan is for."""
    model = GaussianMixtureFlow()
    prompts = [f"sample {k}" for k in range(8)]

    def sampler(*policies: object) -> Sampler:
        return Sampler(policies, solver=FlowEuler(), guidance=CFG(scale=3.0), num_steps=30)  # type: ignore[arg-type]

    profile = sampler().calibrate(model, prompts, seed=100, profiler=ResidualProfiler())
    full = sampler().sample(model, prompts, seed=0).samples
    plans = [
        SkipPolicy(evenly=9),
        MultistepSchedule(profile=profile, budget={"calls": 9}, depth=3),
    ]
    apart = []
    for plan in plans:
        found = sampler(plan, Forecaster(order=2)).sample(model, prompts, seed=0)
        assert found.traces[0].network_calls == 2 * 9
        apart.append(float((found.samples - full).square().mean()))
    assert apart[1] < apart[0]


# ------------------------------------------------------------------------- what is refused
def test_refusals() -> None:
    for budget in (None, {"psnr": 30.0}, {"seconds": 1.0}):
        with pytest.raises(PolicyError, match=r"give budget=.*or speedup"):
            MultistepSchedule(profile=PROFILE, budget=budget)
    with pytest.raises(PolicyError, match="depth must be at least 1"):
        MultistepSchedule(profile=PROFILE, budget={"calls": 4}, depth=0)
    with pytest.raises(ProfileError, match="profile of 10 steps, a schedule of 12"):
        MultistepSchedule(profile=PROFILE, budget={"calls": 4}).plan(12)
    older = Profile(
        **{
            **{name: getattr(PROFILE, name) for name in ("kind", "fingerprint", "samples")},
            "statistics": {k: v for k, v in PROFILE.statistics.items() if k != "velocity"},
        }
    )
    with pytest.raises(ProfileError, match=r"has no 'velocity'.*'multistep'"):
        Engine([MultistepSchedule(profile=older, budget={"calls": 4})])
    elsewhere = Sampler(
        [MultistepSchedule(profile=PROFILE, budget={"calls": 4}), ResidualReuse()],
        guidance=CFG(scale=9.0),
        num_steps=STEPS,
    )
    with pytest.raises(ProfileMismatchError):
        elsewhere.sample(GaussianMixtureFlow(), ["sample 0"])
