"""Groups of steps: equal to trying them all, as published where it is, and refused where none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from erta_framework.errors import PolicyError
from erta_policies.cachequant import group_evenly, group_steps, sum_groups


def walk(steps: int, width: int = 6, seed: int = 0) -> Tensor:
    """A feature that wanders, `[T, width]`."""
    draw = torch.Generator().manual_seed(seed)
    pace = torch.rand(steps, 1, generator=draw) ** 3
    return (pace * torch.randn(steps, width, generator=draw)).cumsum(dim=0).double()


def measure(features: Tensor, lags: int) -> Tensor:
    """L1 distances of each step to those before it, `[T, L]`."""
    found = features.new_zeros(len(features), lags)
    for step in range(len(features)):
        for lag in range(1, min(lags, step) + 1):
            found[step, lag - 1] = (features[step] - features[step - lag]).abs().sum()
    return found


def price(features: Tensor, starts: tuple[int, ...]) -> float:
    """The cost of a schedule by its definition."""
    ends = (*starts[1:], len(features))
    return sum(
        float((features[t] - features[r]).abs().sum())
        for r, end in zip(starts, ends, strict=True)
        for t in range(r, end)
    )


def try_all(steps: int, interval: int, groups: int) -> Iterator[tuple[int, ...]]:
    """Every grouping that is allowed."""

    def extend(starts: tuple[int, ...], left: int, at: int) -> Iterator[tuple[int, ...]]:
        for length in range(math.ceil(interval / 2), 2 * interval + 1):
            if left == 1 and at + length == steps:
                yield (*starts, at)
            elif left > 1 and at + length < steps:
                yield from extend((*starts, at), left - 1, at + length)

    yield from extend((), groups, 0)


@pytest.mark.parametrize(("steps", "interval"), [(20, 3), (20, 5), (16, 2), (12, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_the_groups_are_the_best_of_all(steps: int, interval: int, seed: int) -> None:
    features = walk(steps, seed=seed)
    costs = {
        starts: price(features, starts)
        for starts in try_all(steps, interval, math.ceil(steps / interval))
    }
    found = group_steps(measure(features, 2 * interval - 1), interval)
    assert len(costs) > 1
    assert found == min(costs, key=costs.__getitem__)


@given(steps=st.integers(1, 14), interval=st.integers(1, 8), groups=st.integers(1, 14))
def test_any_number_of_groups_is_the_best_or_refused(
    steps: int, interval: int, groups: int
) -> None:
    features = walk(steps)
    costs = {starts: price(features, starts) for starts in try_all(steps, interval, groups)}
    distances = measure(features, 2 * interval - 1)
    if not costs:
        with pytest.raises(PolicyError, match=f"no {groups} groups"):
            group_steps(distances, interval, groups)
        return
    found = group_steps(distances, interval, groups)
    assert price(features, found) == pytest.approx(min(costs.values()), rel=1e-9)


@given(steps=st.integers(1, 60), interval=st.integers(1, 20))
def test_an_interval_has_groups_unless_half_of_it_is_longer_than_the_run(
    steps: int, interval: int
) -> None:
    distances = measure(walk(steps), 2 * interval - 1)
    if math.ceil(interval / 2) > steps:
        with pytest.raises(PolicyError, match=f"interval from 1 to {2 * steps}"):
            group_steps(distances, interval)
        return
    starts = group_steps(distances, interval)
    lengths = [b - a for a, b in zip(starts, (*starts[1:], steps), strict=True)]
    assert starts[0] == 0
    assert len(starts) == math.ceil(steps / interval)
    assert all(math.ceil(interval / 2) <= length <= 2 * interval for length in lengths)


def test_the_cost_of_a_group_is_the_sum_to_its_start() -> None:
    features = walk(9)
    costs = sum_groups(measure(features, 4))
    for start in range(9):
        for length in range(1, 6):
            if start + length > 9:
                assert costs[start, length - 1] == math.inf
                continue
            expected = sum(
                float((features[t] - features[start]).abs().sum())
                for t in range(start, start + length)
            )
            assert float(costs[start, length - 1]) == pytest.approx(expected, abs=1e-12)


def test_groups_are_dense_where_the_feature_moves() -> None:
    features = torch.zeros(20, 1, dtype=torch.float64)
    features[10:, 0] = torch.arange(10.0).double()
    starts = group_steps(measure(features, 9), interval=5)
    assert len(starts) == 4
    assert sum(start >= 10 for start in starts) > sum(0 < start < 10 for start in starts)


def test_distances_that_do_not_reach_are_refused() -> None:
    with pytest.raises(PolicyError, match="need distances 7 steps back, the profile has 3"):
        group_steps(measure(walk(20), 3), interval=4)


@pytest.mark.parametrize(("steps", "interval", "starts"), [(7, 3, (0, 3, 6)), (4, 9, (0,))])
def test_even_groups(steps: int, interval: int, starts: tuple[int, ...]) -> None:
    assert group_evenly(steps, interval) == starts
