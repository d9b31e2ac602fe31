"""TaylorSeer, HiCache and FORA on whole outputs: published schedules, and what is forecast."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from erta_framework.errors import PolicyError
from erta_framework.testing import toy_run
from erta_policies.adapters import LastStep
from erta_policies.ertacache import SkipPolicy
from erta_policies.forecast import Forecaster
from erta_policies.taylorseer import FORA, HiCache, RefreshInterval, TaylorSeer

GOLDEN = [
    # TaylorSeer's release: interval, first steps, computed of 50 (arXiv 2503.06923, FLUX and Wan)
    ("release", 6, 3, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
    ("release", 5, 3, [0, 1, 2, *range(7, 50, 5)]),
    ("release", 4, 3, [0, 1, 2, *range(6, 50, 4)]),
    ("release", 3, 3, [0, 1, 2, *range(5, 50, 3)]),
    ("release", 5, 1, [*range(0, 50, 5)]),
    # diffusers' TaylorSeerCacheConfig, one forecast right after the first steps
    ("diffusers", 5, 3, [0, 1, 2, 4, *range(9, 50, 5)]),
    # cache-dit counts as the release
    ("cache-dit", 5, 3, [0, 1, 2, *range(7, 50, 5)]),
]
CALLS = {(6, 3): 10, (5, 3): 12, (4, 3): 14, (3, 3): 18, (5, 1): 10}


@pytest.mark.parametrize(("counting", "interval", "first", "computed"), GOLDEN)
def test_published_schedules(counting, interval, first, computed):
    policy = TaylorSeer(interval=interval, first=first, schedule=counting)
    schedule = policy.parts()[0]
    assert list(schedule.plan(50).computed) == computed
    if counting == "release":
        assert len(computed) == CALLS[interval, first]


@pytest.mark.parametrize(("interval", "first"), [(5, 3), (6, 3), (3, 1), (4, 2)])
def test_the_diffusers_count_is_what_diffusers_itself_decides(interval, first):
    """`TaylorSeerCacheHook._measure_should_compute` of the installed diffusers, asked 50 times."""
    hooks = pytest.importorskip("diffusers.hooks.taylorseer_cache")
    state = hooks.TaylorSeerState()
    hook = hooks.TaylorSeerCacheHook(
        interval, first, torch.float32, SimpleNamespace(get_state=lambda: state)
    )
    decided = [i for i in range(50) if hook._measure_should_compute()[0]]
    policy = RefreshInterval(interval=interval, first=first, counting="diffusers")
    assert list(policy.plan(50).computed) == decided


def test_fora_counts_down_to_the_last_step():
    """FORA's code recomputes where its falling index is a multiple of N: here 249, 248 .. 0."""
    computed = FORA(interval=3).parts()[0].plan(250).computed
    assert computed == (0, *[i for i in range(1, 250) if (249 - i) % 3 == 0])
    assert computed[-1] == 249
    up = FORA(interval=3, counting="up").parts()[0].plan(250).computed
    assert up == tuple(range(0, 250, 3))


def test_the_schedules_run_as_planned():
    for policy in (TaylorSeer(interval=4), HiCache(interval=4), FORA(interval=4)):
        trace = toy_run([policy]).trace
        assert trace.computed_steps == policy.parts()[0].plan(10).computed
        assert trace.network_calls == 2 * len(trace.computed_steps)


def test_an_adapter_forces_the_last_step():
    assert toy_run([TaylorSeer(interval=4)]).trace.computed_steps == (0, 1, 2, 6)
    assert toy_run([LastStep(), TaylorSeer(interval=4)]).trace.computed_steps == (0, 1, 2, 6, 9)


def test_fora_is_plain_output_reuse():
    plain = toy_run([SkipPolicy(every=3), Forecaster(order=0)])
    assert torch.equal(toy_run([FORA(interval=3)]).sample, plain.sample)
    assert torch.equal(
        toy_run([FORA(interval=4, counting="up"), LastStep()]).sample,
        toy_run([TaylorSeer(interval=4, first=1, order=0), LastStep()]).sample,
    )


class Table:
    """TaylorSeer's difference table as its release keeps it: new level over the step distance.

    Written from the published description: differences are formed from step `first - 1` on.
    """

    def __init__(self, order: int, first: int) -> None:
        self.order, self.first, self.levels, self.last = order, first, [], 0

    def update(self, step: int, value: float) -> None:
        levels = [value]
        if self.levels and step > self.first - 2:
            for j in range(min(self.order, len(self.levels))):
                levels.append((levels[j] - self.levels[j]) / (step - self.last))
        self.levels, self.last = levels, step

    def forecast(self, step: int) -> float:
        k = step - self.last
        return sum(d * k**j / math.factorial(j) for j, d in enumerate(self.levels))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("interval", "first"), [(3, 3), (2, 1), (4, 2)])
def test_forecasts_are_those_of_the_published_table(order, interval, first):
    policy = TaylorSeer(interval=interval, first=first, order=order)
    schedule, forecaster = policy.parts()
    computed, table, known = schedule.plan(20).computed, Table(order, first), []
    for step in range(20):
        value = math.sin(0.3 * step) + 0.1 * step
        if step in computed:
            table.update(step, value)
            known.insert(0, (step, value))
            continue
        newest, *older = known[: order + 1]
        used = [newest, *(one for one in older if one[0] >= forecaster.since)]
        weights = forecaster.weights([float(s) for s, _ in used], float(step), step + 1.0)
        found = sum(w * v for w, (_, v) in zip(weights, used, strict=True))
        assert found == pytest.approx(table.forecast(step), rel=1e-9)


def test_what_the_release_leaves_out_changes_the_run():
    release = toy_run([TaylorSeer(interval=3, order=2)])
    whole = toy_run(
        [RefreshInterval(interval=3), Forecaster(basis="taylor", order=2, over="index")]
    )
    assert release.trace.computed_steps == whole.trace.computed_steps
    assert not torch.equal(release.sample, whole.sample)


def test_hicache_of_the_root_of_a_half_is_taylorseer_at_order_one():
    """The effective slope 2 * scale^2 of HiCache, arXiv 2508.16984."""
    hermite = toy_run([HiCache(interval=3, order=1, scale=math.sqrt(0.5))])
    taylor = toy_run([TaylorSeer(interval=3, order=1)])
    torch.testing.assert_close(hermite.sample, taylor.sample, rtol=1e-5, atol=1e-5)
    damped = toy_run([HiCache(interval=3, order=1)])
    assert (damped.sample - taylor.sample).abs().max() > 1e-3


def test_counting_in_sigma_forecasts_better_on_an_uneven_grid():
    """Ours, on this toy: the output is smooth in sigma, and the grid of shift 3 is not even."""
    full = toy_run().sample

    def error(policy):
        return float((toy_run([policy]).sample - full).norm())

    assert error(TaylorSeer(interval=3, over="sigma")) < error(TaylorSeer(interval=3))


def test_what_cannot_be_is_refused():
    with pytest.raises(PolicyError, match="interval 0 and first 3"):
        TaylorSeer(interval=0)
    with pytest.raises(PolicyError, match="adams basis averages"):
        TaylorSeer(basis="adams")
    with pytest.raises(PolicyError, match="order of Forecaster is 9"):
        HiCache(order=9)
    with pytest.raises(PolicyError, match="interval 0"):
        FORA(interval=0)
