"""MeanCache's released tables, the costs that its profiler sums, and the planner."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Profile
from erta_framework.errors import InputError, PolicyError, ProfileError, ProfileMismatchError
from erta_framework.testing import AlternateSteps, toy_profile, toy_run
from erta_framework.testing._drivers import run_plain_loop
from erta_framework.testing._setup import FLOW
from erta_policies.meancache import (
    EdgePath,
    MeanCacheProfiler,
    MeanCacheSchedule,
    find_shortest_path,
    look_up_path,
    price_edges,
    read_tables,
)

FRESH = {
    ("qwen-image", 25): [*range(17), 24, 32, 40, 43, 45, 47, 48, 49],
    ("qwen-image", 17): [*range(9), 10, 17, 24, 31, 38, 45, 48, 49],
    ("qwen-image", 10): [0, 1, 3, 7, 14, 21, 28, 35, 42, 49],
    ("qwen-image-2512", 25): [*range(16), 23, 31, 37, *range(44, 50)],
    ("qwen-image-2512", 17): [*range(10), 11, 19, 27, 35, 43, 47, 49],
    ("qwen-image-2512", 10): [0, 2, 4, 7, 14, 21, 28, 35, 42, 49],
    ("z-image", 25): [
        *(0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 15),
        *(16, 17, 18, 20, 22, 29, 37, 42, 45, 47, 48, 49),
    ],
    ("z-image", 20): [*range(5), *range(6, 23, 2), 30, 38, 43, 46, 48, 49],
    ("z-image", 17): [*range(5), 6, 8, 10, 12, 14, 19, 27, 35, 43, 46, 48, 49],
    ("z-image", 15): [*range(4), 5, 7, 10, 12, 17, 25, 33, 41, 45, 48, 49],
    ("z-image", 13): [*range(4), 5, 9, 15, 22, 29, 36, 43, 47, 49],
}
SPANS = {
    ("qwen-image", 25): [0] * 16 + [1, 1, 1, 5, 5, 5, 0, 0],
    ("qwen-image", 10): [0, 2, 1, 1, 1, 1, 1, 1, 4],
    ("qwen-image-2512", 25): [0] * 15 + [2, 2, 2, 1, 1, 1, 5, 5, 0],
    ("qwen-image-2512", 10): [1, 3, 1, 1, 1, 1, 1, 1, 4],
    ("z-image", 20): [0] * 4 + [2, 2, 2, 2, 2, 5, 4, 5, 5, 1, 1, 1, 5, 2, 0],
    ("z-image", 13): [0, 0, 0, 2, 1, 1, 1, 1, 1, 1, 5, 2],
}


def test_the_released_tables_are_those_of_the_repository():
    """UnicomAI/MeanCache at 2e12280a: Mc_qwenimage.py, Mc_qwenimage_2512.py and MC_zimage.py."""
    found = {
        (model, calls): path for model, row in read_tables().items() for calls, path in row.items()
    }
    assert {key: list(path.fresh) for key, path in found.items()} == FRESH
    for key, spans in SPANS.items():
        assert list(found[key].spans) == spans


@pytest.mark.parametrize(("model", "calls"), FRESH)
def test_a_released_table_computes_as_many_steps_as_its_name_says(model, calls):
    path = look_up_path(model, calls)
    plan = MeanCacheSchedule(model=model, calls=calls).plan(50)
    assert plan.computed == path.fresh
    assert len(plan.computed) == calls
    assert (plan.computed[0], plan.computed[-1]) == (0, 49)
    assert max(b - a for a, b in pairwise(path.fresh)) <= 8
    # an edge without a span has no step in between
    edges = zip(pairwise(path.fresh), path.spans, strict=True)
    assert all(b == a + 1 for (a, b), span in edges if span == 0)


def test_spans_belong_to_edges():
    path = EdgePath((0, 1, 4, 6), (0, 3, 2))
    assert path.by_step(7) == (0, 3, 3, 3, 2, 2, 0)
    with pytest.raises(InputError, match="ends at step 6, the schedule of 8 steps at 7"):
        path.by_step(8)
    with pytest.raises(PolicyError, match="must rise from step 0"):
        EdgePath((0, 4, 1), (0, 0))


# ---------------------------------------------------------------------------- profiler
def trajectory(setup=FLOW, seed=11):
    """Latents at every node of a run written out by hand, `T + 1` of them, and the sigmas."""
    nodes = []

    class Keep(type(setup.solver)):
        def step(self, x, output, interval, state):
            after = super().step(x, output, interval, state)
            nodes.append(after[0])
            return after

    request = setup.request(seed=seed)
    watching = type(setup)(
        toy=setup.toy, solver=Keep(), guidance=setup.guidance, num_steps=setup.num_steps
    )
    run_plain_loop(watching, request, setup.toy())
    return [request.latents, *nodes], request.schedule.sigmas


@pytest.mark.parametrize("guidance", [CFG(scale=2.0), CFG(scale=2.0, batched=True), NoGuidance()])
def test_edge_costs_against_whole_trajectories(guidance):
    setup = type(FLOW)(toy=FLOW.toy, solver=FlowEuler(), guidance=guidance, num_steps=10)
    profile = toy_profile(MeanCacheProfiler(longest=4, spans=3), seeds=(11,), setup=setup)
    x, s = trajectory(setup)
    assert profile.samples == 2

    def mean(a, b):
        return (x[b] - x[a]) / (s[b] - s[a])

    for span in (1, 2, 3):
        for i in range(10):
            for j in range(i + 1, min(i + 4, 10) + 1):
                if span > max(1, i):
                    continue
                guess = mean(i, i + 1)
                if i >= span:
                    r = i - span
                    guess = guess + (s[j] - s[i]) * (mean(r, i) - mean(r, r + 1)) / (s[i] - s[r])
                expected = (mean(i, j) - guess).abs().flatten(1).mean(1).sum()
                found = profile.statistics["cost"][span - 1, i, j - i - 1]
                assert float(found) == pytest.approx(float(expected), abs=2e-4)


def test_an_edge_of_one_step_costs_exactly_nothing_under_euler():
    costs, best = price_edges(toy_profile(MeanCacheProfiler()))
    assert [float(costs[i, i + 1]) for i in range(10)] == [0.0] * 10
    assert [int(best[i, i + 1]) for i in range(10)] == [1] * 10
    longer = [float(costs[i, i + 2]) for i in range(9)]
    assert min(longer) > 1e-4
    assert not costs[0, 9].isfinite()  # longer than the profiler looked
    assert not costs[3, 2].isfinite()


def test_profiles_of_batches_merge_to_the_profile_of_all():
    parts = [toy_profile(MeanCacheProfiler(), seeds=(seed,)) for seed in (11, 12)]
    both = toy_profile(MeanCacheProfiler(), seeds=(11, 12))
    merged = Profile.merge(parts)
    assert merged.samples == both.samples == 4
    assert torch.equal(merged.statistics["cost"], both.statistics["cost"])


def test_only_full_whole_runs_are_observed():
    with pytest.raises(PolicyError, match="step 1 of branch 'cond' was reused"):
        toy_run([MeanCacheProfiler(), AlternateSteps()])
    with pytest.raises(InputError, match="starts at step 2"):
        FLOW.run(Engine([MeanCacheProfiler()]), FLOW.request(first=2))


def test_the_profiler_holds_no_more_than_its_longest_way():
    held = []

    class Counting(MeanCacheProfiler):
        def _measured(self, session):
            measured = super()._measured(session)
            held.append(len(measured.way))
            return measured

    toy_run([Counting(longest=2, spans=2)])
    assert max(held) == 4


def test_a_profile_of_another_run_is_refused():
    profile = toy_profile(MeanCacheProfiler())
    other = type(FLOW)(
        toy=FLOW.toy, solver=FlowEuler(shift=1.0), guidance=FLOW.guidance, num_steps=10
    )
    with pytest.raises(ProfileMismatchError, match="sigma_grid"):
        toy_run([MeanCacheSchedule(profile=profile, calls=5)], setup=other)


# ----------------------------------------------------------------------------- planner
def every_path(steps, most):
    """Every path from 0 to T of at most so many edges whose last edge is one step."""
    for count in range(min(most, steps)):
        for middle in combinations(range(1, steps), count):
            nodes = (0, *middle)
            if nodes[-1] == steps - 1:
                yield nodes


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(2, 7),
    calls=st.integers(1, 7),
    gamma=st.sampled_from([1.0, 2.0, 4.0]),
    seed=st.integers(0, 10_000),
)
def test_the_planner_is_optimal_against_every_path(steps, calls, gamma, seed):
    costs = torch.rand(
        steps + 1, steps + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    costs[torch.ones_like(costs).tril().bool()] = torch.inf
    for i in range(steps):
        costs[i, i + 1] = 0.0
    calls = min(calls, steps)

    def total(nodes):
        return sum(float(costs[a, b]) ** gamma for a, b in pairwise((*nodes, steps)))

    paths = [path for path in every_path(steps, calls) if len(path) == calls]
    if not paths:
        with pytest.raises(ProfileError, match="makes it at least 2"):
            find_shortest_path(costs, calls, gamma)
        return
    found = find_shortest_path(costs, calls, gamma)
    assert len(found) == calls
    assert found[0] == 0
    assert found[-1] == steps - 1
    assert total(found) == pytest.approx(min(map(total, paths)), abs=1e-12)


def bellman_ford(costs, edges):
    """Least sum of costs over at most so many edges."""
    nodes = len(costs)
    least = [0.0] + [float("inf")] * (nodes - 1)
    for _ in range(edges):
        least = [
            min([least[j]] + [least[i] + float(costs[i, j]) for i in range(j)])
            for j in range(nodes)
        ]
    return least[-1]


@pytest.mark.parametrize("calls", [3, 4, 6, 8])
def test_gamma_of_one_is_the_ordinary_shortest_path(calls):
    costs, _ = price_edges(toy_profile(MeanCacheProfiler()))
    nodes = (*find_shortest_path(costs, calls, 1.0), 10)
    limited = costs.clone()
    limited[:9, 10] = torch.inf
    total = sum(float(costs[a, b]) for a, b in pairwise(nodes))
    assert total == pytest.approx(bellman_ford(limited, calls), rel=1e-9)


def test_a_larger_gamma_lowers_the_peak():
    """Two ways over three edges: even costs, or a cheaper sum with one bad edge."""
    inf = float("inf")
    costs = torch.full((5, 5), inf, dtype=torch.float64)
    for a, b, cost in [(0, 1, 0.0), (1, 3, 0.9), (0, 2, 0.5), (2, 3, 0.5), (3, 4, 0.0)]:
        costs[a, b] = cost
    assert find_shortest_path(costs, 3, 1.0) == (0, 1, 3)
    assert find_shortest_path(costs, 3, 4.0) == (0, 2, 3)


def test_the_peak_of_calibrated_paths_falls_with_gamma():
    costs, _ = price_edges(toy_profile(MeanCacheProfiler()))

    def peak(gamma):
        nodes = (*find_shortest_path(costs, 5, gamma), 10)
        return max(float(costs[a, b]) for a, b in pairwise(nodes))

    assert peak(8.0) <= peak(1.0)


def test_too_few_calls_say_how_many_it_takes():
    profile = toy_profile(MeanCacheProfiler(longest=3))
    with pytest.raises(ProfileError, match="makes it at least 4"):
        Engine([MeanCacheSchedule(profile=profile, calls=3)])
    assert len(MeanCacheSchedule(profile=profile, calls=4).plan(10).computed) == 4
    with pytest.raises(ProfileError, match="11 network calls are more than the 10 steps"):
        Engine([MeanCacheSchedule(profile=profile, calls=11)])


def test_a_plan_describes_itself():
    policy = MeanCacheSchedule(profile=toy_profile(MeanCacheProfiler()), calls=5)
    facts = policy.plan(10).describe()
    assert facts["calls"] == 5.0
    assert 0.0 < facts["peak"] <= facts["error"]
    every = MeanCacheSchedule(profile=toy_profile(MeanCacheProfiler()), calls=10)
    assert every.plan(10).describe() == {"calls": 10.0, "error": 0.0, "peak": 0.0, "predicted": 0.0}


def test_the_profile_survives_its_file(tmp_path):
    path = toy_profile(MeanCacheProfiler()).save(tmp_path / "mean.safetensors")
    policy = MeanCacheSchedule(profile=path, calls=6)
    Engine([policy])
    assert len(policy.path.spans) == 5
