"""CEM: the changes that are measured, the price of a gap, and the plan of least cost."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from erta_framework import Policy, Profile, hookimpl
from erta_framework.errors import PolicyError, ProfileError
from erta_framework.testing import AlternateSteps, toy_profile, toy_run
from erta_policies.cem import CEM, CEMProfiler, plan_gaps

STEPS = 10


@pytest.fixture(scope="module")
def profile() -> Profile:
    return toy_profile(CEMProfiler())


class Watch(Policy):
    """Remembers what the network said at each step of each branch."""

    seen: list

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        self.seen.append((call.branch, step.index, output.clone()))
        return output


def test_the_change_is_one_minus_the_cosine_over_each_gap() -> None:
    seen: list = []
    (made,) = toy_run([Watch(seen=seen), CEMProfiler(longest=3)]).emitted
    change, rows = made.statistics["change"], made.statistics["rows"]
    outputs = {(branch, index): output for branch, index, output in seen}
    branches = sorted({branch for branch, _ in outputs})
    for gap, index in itertools.product(range(1, 4), range(STEPS)):
        found = 0.0
        for branch in branches if index >= gap else ():
            now, then = (outputs[branch, k].double().flatten(1) for k in (index, index - gap))
            found += float((1 - torch.cosine_similarity(now, then)).sum())
        assert float(change[gap - 1, index]) == pytest.approx(found, abs=1e-9)
    assert set(rows.tolist()) == {float(len(branches) * len(seen[0][2]))}


def test_a_reused_step_is_refused() -> None:
    with pytest.raises(PolicyError, match="calibrate without skip policies"):
        toy_run([AlternateSteps(), CEMProfiler()])


@pytest.mark.parametrize("weight", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("calls", [3, 4, 6, 10])
def test_the_plan_is_the_cheapest_of_all_with_gaps_near_the_mean(
    profile: Profile, calls: int, weight: str
) -> None:
    rows = profile.statistics["rows"]
    change = profile.statistics["change"] / rows
    power = {"none": 0, "linear": 1, "quadratic": 2}[weight]

    def price(steps: tuple[int, ...]) -> float:
        return sum(
            (b - a - 1) ** power * float(change[b - a - 2, b])
            for a, b in itertools.pairwise(steps)
            if b - a > 1
        )

    def is_near(steps: tuple[int, ...]) -> bool:
        mean = round(STEPS / calls)
        return all(abs(b - a - mean) <= spread for a, b in itertools.pairwise(steps))

    plans = [
        (0, *inner, STEPS - 1) for inner in itertools.combinations(range(1, STEPS - 1), calls - 2)
    ]
    for spread in range(1, STEPS):  # noqa: B007
        if near := list(filter(is_near, plans)):
            break
    found = plan_gaps(profile, calls, weight)  # type: ignore[arg-type]
    assert price(found.computed) == pytest.approx(min(map(price, near)), abs=1e-12)
    assert is_near(found.computed)
    assert found.predicted == pytest.approx(price(found.computed), abs=1e-12)


def test_a_step_at_which_the_output_jumps_is_reached_by_a_short_gap(profile: Profile) -> None:
    flat = dict(profile.statistics)
    flat["change"] = torch.full_like(flat["change"], 0.01) * flat["rows"]
    flat["change"][:, 5] = flat["rows"][5]
    jumps = dataclasses.replace(profile, statistics=flat)
    assert 5 not in plan_gaps(jumps, 5).computed


def test_it_computes_so_many_calls(profile: Profile) -> None:
    trace = toy_run([CEM(profile=profile, calls=4)]).trace
    assert trace.network_samples == 4 * 2 * 2  # of two branches and samples
    assert CEM(profile=profile, budget={"speedup": 2.0}).plan(STEPS).calls == 5


def test_what_cannot_be_planned_says_so(profile: Profile) -> None:
    short = toy_profile(CEMProfiler(longest=2))
    with pytest.raises(ProfileError, match="ask for 4 calls or more"):
        plan_gaps(short, 3)
    assert plan_gaps(short, 4).computed == (0, 3, 6, 9)
    with pytest.raises(ProfileError, match="profile of 10 steps, a schedule of 20"):
        CEM(profile=profile, calls=4).plan(20)
    with pytest.raises(PolicyError, match="or a budget"):
        CEM(profile=profile)
    with pytest.raises(PolicyError, match="it is one of none, linear, quadratic"):
        CEM(profile=profile, calls=3, weight="cubic")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="at least 1 step"):
        CEMProfiler(longest=0)
