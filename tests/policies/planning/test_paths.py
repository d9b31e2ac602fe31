"""The dynamic program against every schedule there is, and how much work it is."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_policies.shared import _paths, find_cheapest_paths, forbid_growing_gaps, to_band

INF = float("inf")


def table(steps: int, longest: int, gaps: int, seed: int) -> torch.Tensor:
    """Random edges `[gaps, N, L]`; nothing depends on what comes before the first."""
    noise = torch.Generator().manual_seed(seed)
    edges = torch.rand(gaps, steps + 1, longest, generator=noise, dtype=torch.float64)
    for length in range(1, longest + 1):
        edges[:, steps + 1 - length :, length - 1] = INF
    edges[:, 0] = edges[-1, 0].clone()
    return edges


def every_schedule(steps: int, calls: int) -> list[tuple[int, ...]]:
    """All schedules with so many computed steps, the first and the last among them."""
    if calls == 1:
        return [(0,)] if steps == 1 else []
    return [(0, *middle, steps - 1) for middle in combinations(range(1, steps - 1), calls - 2)]


def total(edges: torch.Tensor, schedule: tuple[int, ...], gamma: float) -> float:
    gaps, nodes, longest = edges.shape
    before, found = gaps, 0.0
    for start, end in pairwise((*schedule, nodes - 1)):
        if end - start > longest:
            return INF
        found += float(edges[min(before, gaps) - 1, start, end - start - 1]) ** gamma
        before = end - start
    return found


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(2, 8),
    longest=st.integers(1, 8),
    second=st.booleans(),
    gamma=st.sampled_from([1.0, 2.0, 4.0]),
    seed=st.integers(0, 10_000),
)
def test_every_number_of_calls_is_optimal_against_brute_force(steps, longest, second, gamma, seed):
    longest = min(longest, steps)
    edges = table(steps, longest, longest if second else 1, seed)
    found = find_cheapest_paths(edges if second else edges[0], gamma)
    for calls in range(1, steps + 1):
        best = min((total(edges, s, gamma) for s in every_schedule(steps, calls)), default=INF)
        if best == INF:
            assert calls not in found
            continue
        assert found[calls].calls == calls
        assert found[calls].computed[0] == 0
        assert found[calls].computed[-1] == steps - 1
        assert found[calls].predicted ** gamma == pytest.approx(best, rel=1e-9)
        assert total(edges, found[calls].computed, gamma) == pytest.approx(best, rel=1e-9)


def test_falling_gaps_are_the_monotone_family():
    steps = 9
    edges = table(steps, steps, 1, seed=3)[0]
    found = find_cheapest_paths(forbid_growing_gaps(edges), 1.0)
    for calls, path in found.items():
        gaps = [b - a for a, b in pairwise((*path.computed, steps))]
        assert gaps == sorted(gaps, reverse=True)
        allowed = [
            s
            for s in every_schedule(steps, calls)
            if (g := [b - a for a, b in pairwise((*s, steps))]) == sorted(g, reverse=True)
        ]
        best = min(total(edges[None], s, 1.0) for s in allowed)
        assert path.predicted == pytest.approx(best, rel=1e-9)


def test_a_band_holds_the_costs_by_length():
    costs = torch.arange(16.0).reshape(4, 4)
    band = to_band(costs, longest=2)
    assert band.shape == (4, 2)
    assert band[0].tolist() == [1.0, 2.0]
    assert band[2, 1] == INF


def test_equal_costs_take_the_longest_last_edges_every_time():
    edges = torch.zeros(6, 5, dtype=torch.float64)
    for length in range(1, 6):
        edges[6 - length :, length - 1] = INF
    first = {calls: path.computed for calls, path in find_cheapest_paths(edges).items()}
    assert first == {calls: path.computed for calls, path in find_cheapest_paths(edges).items()}
    assert first[3] == (0, 1, 4)


def test_the_work_grows_with_calls_steps_and_the_longest_edge(monkeypatch):
    """Additions are counted where they are made: B * T * L, and B * T * L^2 with the gap before."""
    counted = []

    class Counting(torch.Tensor):
        def __add__(self, other):
            counted.append(torch.broadcast_shapes(self.shape, other.shape).numel())
            return torch.Tensor.__add__(self, other)

    def counting(edges, gamma):
        powered, scale = normalise_edges(edges, gamma)
        return powered.as_subclass(Counting), scale

    normalise_edges = _paths.normalise_edges
    monkeypatch.setattr(_paths, "normalise_edges", counting)
    for steps, longest, gaps in [(20, 5, 1), (20, 10, 1), (40, 5, 1), (20, 5, 5)]:
        counted.clear()
        edges = table(steps, longest, gaps, seed=0)
        find_cheapest_paths(edges if gaps > 1 else edges[0], most=8)
        assert sum(counted) == 8 * (steps + 1) * longest * gaps
