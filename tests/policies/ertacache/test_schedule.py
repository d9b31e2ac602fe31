"""Threshold walks, solving for a number of calls, and plans."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from erta_framework.budgets import StepSchedule
from erta_framework.errors import ProfileError
from erta_policies.ertacache._schedule import (
    count_walk_calls,
    list_lambdas,
    reused_pairs,
    solve_threshold,
    spread_evenly,
    walk,
)

# rows: step whose residual is reused; columns: step at which it stands in
BY_HAND = torch.tensor(
    [
        [0.0, 0.05, 0.12, 0.20, 0.30, 0.40],
        [0.0, 0.00, 0.06, 0.15, 0.22, 0.30],
        [0.0, 0.00, 0.00, 0.07, 0.09, 0.25],
        [0.0, 0.00, 0.00, 0.00, 0.11, 0.18],
        [0.0, 0.00, 0.00, 0.00, 0.00, 0.08],
        [0.0, 0.00, 0.00, 0.00, 0.00, 0.00],
    ],
    dtype=torch.float64,
)


def slow_walk(errors: list[list[float]], threshold: float, warmup: int = 1) -> list[int]:
    """The walk as the paper writes it, one step at a time, returning the source of every step."""
    last = len(errors) - 1
    cached, sources = 0, [0]
    for step in range(1, len(errors)):
        reuse = errors[cached][step] < threshold
        if step < warmup or step == last:
            reuse = False
        if not reuse:
            cached = step
        sources.append(cached)
    return sources


@st.composite
def matrices(draw: st.DrawFn, values: st.SearchStrategy[float] | None = None) -> Tensor:
    steps = draw(st.integers(1, 9))
    values = values if values is not None else st.floats(0, 2, width=32)
    numbers = draw(st.lists(values, min_size=steps * steps, max_size=steps * steps))
    return torch.tensor(numbers, dtype=torch.float64).reshape(steps, steps).triu(diagonal=1)


# few distinct values make ties and walks that gain calls as lambda grows
COARSE = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
THRESHOLDS = st.one_of(st.just(0.0), st.just(math.inf), st.floats(0, 3))


def test_golden_walk() -> None:
    # 0.05 reuse, 0.12 compute, 0.07 reuse, 0.09 reuse (from step 2), last computed
    plan = walk(BY_HAND, 0.10)
    assert plan == StepSchedule((0, 2, 5), (0, 0, 2, 2, 2, 5), 0.10)


@pytest.mark.parametrize(
    ("threshold", "computed"),
    [
        (0.0, (0, 1, 2, 3, 4, 5)),
        (0.05, (0, 1, 2, 3, 4, 5)),  # strictly below: 0.05 < 0.05 is false
        (0.0500001, (0, 2, 3, 4, 5)),
        (0.08, (0, 2, 4, 5)),
        (0.13, (0, 3, 5)),
        (0.21, (0, 4, 5)),
        (1.0, (0, 5)),
    ],
)
def test_golden_walks_over_lambda(threshold: float, computed: tuple[int, ...]) -> None:
    assert walk(BY_HAND, threshold).computed == computed


def test_warmup_steps_are_computed_and_refresh_the_residual() -> None:
    assert walk(BY_HAND, 1.0, warmup=3).sources == (0, 1, 2, 2, 2, 5)
    assert walk(BY_HAND, 1.0, warmup=99).calls == 6


@patient
@given(matrices(), THRESHOLDS, st.integers(1, 12))
def test_walk_is_the_slow_walk(errors: Tensor, threshold: float, warmup: int) -> None:
    plan = walk(errors, threshold, warmup)
    assert list(plan.sources) == slow_walk(errors.tolist(), threshold, warmup)
    assert plan.threshold == threshold


@patient
@given(
    matrices(st.one_of(st.floats(0, 2), st.just(math.inf), st.just(math.nan))),
    THRESHOLDS,
    st.integers(1, 12),
)
def test_ends_are_computed_and_sources_consistent(
    errors: Tensor, threshold: float, warmup: int
) -> None:
    plan = walk(errors, threshold, warmup)
    last = len(errors) - 1
    assert plan.computed[0] == 0
    assert plan.computed[-1] == last
    assert plan.calls == len(set(plan.computed))
    assert len(plan.sources) == len(errors)
    for step, source in enumerate(plan.sources):
        assert source == max(c for c in plan.computed if c <= step)
        assert (source == step) == (step in plan.computed)


@patient
@given(matrices(COARSE), st.integers(1, 3))
def test_calls_side_by_side_are_the_walks(errors: Tensor, warmup: int) -> None:
    thresholds = list_lambdas(errors)
    counted = count_walk_calls(errors, thresholds, warmup).tolist()
    assert counted == [walk(errors, value, warmup).calls for value in thresholds.tolist()]
    assert all(a < b for a, b in pairwise(thresholds.tolist()))


@patient
@given(st.one_of(matrices(COARSE), matrices()), st.integers(1, 4), st.data())
def test_solving_for_calls_against_brute_force(errors: Tensor, warmup: int, data: st.DataObject):
    calls = data.draw(st.integers(1, len(errors) + 1))
    values = sorted({float(v) for v in errors.flatten()} | {math.inf})
    # lambda = a value computes it, lambda just above reuses it
    possible = {walk(errors, v, warmup).calls for v in values}
    possible |= {walk(errors, math.nextafter(v, math.inf), warmup).calls for v in values}
    if not min(possible) <= calls <= len(errors):
        with pytest.raises(ProfileError, match=f"{calls} network calls cannot be scheduled"):
            solve_threshold(errors, calls, warmup)
        return
    plan = solve_threshold(errors, calls, warmup)
    assert plan.calls == calls
    assert plan.threshold is not None
    walked = walk(errors, plan.threshold, warmup)
    assert walked.calls == max(n for n in possible if n <= calls)
    assert {*walked.computed} <= {*plan.computed}


def test_calls_need_not_fall_with_lambda_and_are_still_found() -> None:
    # a larger lambda keeps step 0's residual at step 1 and pays for it at every later step
    errors = torch.tensor(
        [
            [0.0, 0.2, 0.9, 0.9, 0.9, 0.9],
            [0.0, 0.0, 0.1, 0.1, 0.1, 0.1],
            [0.0, 0.0, 0.0, 0.8, 0.9, 0.9],
            [0.0, 0.0, 0.0, 0.0, 0.8, 0.9],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.9],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    assert [walk(errors, v).calls for v in (0.15, 0.25, 0.85, 0.95)] == [3, 5, 4, 2]
    assert solve_threshold(errors, 2).computed == (0, 5)
    assert solve_threshold(errors, 3).computed == (0, 1, 5)
    assert solve_threshold(errors, 4).computed == (0, 2, 4, 5)
    assert solve_threshold(errors, 5).computed == (0, 2, 3, 4, 5)


def test_a_rounded_lambda_gives_the_same_plan() -> None:
    for calls in range(2, 7):
        plan = solve_threshold(BY_HAND, calls)
        assert plan.threshold is not None
        assert walk(BY_HAND, round(plan.threshold, 3)).computed == plan.computed


@pytest.mark.parametrize("calls", [-1, 0, 1, 7, 100])
def test_impossible_calls_say_what_is_possible(calls: int) -> None:
    with pytest.raises(ProfileError, match=r"over 6 steps: between 2 .* and 6 are possible"):
        solve_threshold(BY_HAND, calls)


def test_warmup_raises_the_smallest_number_of_calls() -> None:
    assert solve_threshold(BY_HAND, 4, warmup=3).computed == (0, 1, 2, 5)
    with pytest.raises(ProfileError, match=r"between 4 \(the first 3, the last"):
        solve_threshold(BY_HAND, 3, warmup=3)


def test_steps_without_a_residual_are_always_computed() -> None:
    errors = BY_HAND.clone()
    errors[:3, 3] = math.inf
    assert solve_threshold(errors, 3).computed == (0, 3, 5)
    with pytest.raises(ProfileError, match="between 3"):
        solve_threshold(errors, 2)


def test_schedules_of_one_and_two_steps() -> None:
    assert solve_threshold(torch.zeros(1, 1), 1) == StepSchedule((0,), (0,), 0.0)
    assert solve_threshold(torch.zeros(2, 2), 2).computed == (0, 1)
    assert walk(torch.zeros(2, 2), math.inf).computed == (0, 1)


def test_evenly_uses_exactly_the_calls_and_both_ends() -> None:
    for num_steps in range(2, 41):
        for calls in range(2, num_steps + 1):
            plan = spread_evenly(calls, num_steps)
            gaps = [b - a for a, b in pairwise(plan.computed)]
            assert plan.calls == calls
            assert (plan.computed[0], plan.computed[-1]) == (0, num_steps - 1)
            assert max(gaps) - min(gaps) <= 1
            assert plan.threshold is None
    assert spread_evenly(1, 1).computed == (0,)


@pytest.mark.parametrize(("calls", "num_steps"), [(1, 5), (0, 5), (6, 5), (2, 1)])
def test_evenly_refuses_impossible_calls(calls: int, num_steps: int) -> None:
    with pytest.raises(ProfileError, match=f"{calls} calls cannot be spread over {num_steps}"):
        spread_evenly(calls, num_steps)


def test_plan_adds_the_ends_and_knows_its_pairs() -> None:
    plan = StepSchedule.of({3}, 6, threshold=0.5, compute_last=True)
    assert plan == StepSchedule((0, 3, 5), (0, 0, 0, 3, 3, 5), 0.5)
    assert plan.calls == 3
    assert reused_pairs(plan) == [(0, 1), (0, 2), (3, 4)]
    assert reused_pairs(StepSchedule.of(range(4), 4)) == []
