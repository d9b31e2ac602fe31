"""`TimestepAdjuster`: the budget of time is spent exactly, whatever phi and the grid."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erta_framework import (
    DDIM,
    Engine,
    FlowAdamsBashforth2,
    FlowEuler,
    Result,
    Sampler,
    SamplingLoop,
)
from erta_framework.budgets import StepSchedule
from erta_framework.errors import CapabilityError, ConflictError, PolicyError
from erta_policies.ertacache import SkipPolicy, TimestepAdjuster
from erta_policies.ertacache._statistics import phi_table

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def recursion(phi: list[float], computed: set[int]) -> list[float]:
    """dt_c = (1 - sum dt) / (1 - n/T) as the paper writes it, uniform grid, time falling from 1."""
    steps = len(phi)
    sizes: list[float] = []
    for i in range(steps):
        dt_c = (1 - sum(sizes)) / (1 - i / steps)
        sizes.append(dt_c / steps * (1.0 if i in computed else phi[i]))
    return sizes


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[float], list[int], float]:
    steps = draw(st.integers(1, 12))
    gaps = draw(
        st.lists(st.floats(0.001, 1.0), min_size=steps, max_size=steps)
    )  # any strictly falling grid that ends in 0
    sigmas = [sum(gaps[i:]) for i in range(steps + 1)]
    phi = draw(st.lists(st.floats(0, 1), min_size=steps, max_size=steps))
    reused = draw(st.lists(st.integers(0, steps - 1), max_size=steps))
    minimum = draw(st.sampled_from([1e-6, 0.2, 1.0]))
    return sigmas, phi, [i for i in range(steps) if i not in reused], minimum


@patient
@given(cases(), st.sampled_from(["nominal", "actual"]))
def test_time_is_spent_exactly(world: SimpleNamespace, case: Any, network_time: Any) -> None:
    sigmas, phi, computed, minimum = case
    assert all(a > b for a, b in pairwise(sigmas))
    network = world.Swirl()
    result = world.run(
        [
            SkipPolicy(steps=tuple(computed)),
            TimestepAdjuster(phi=tuple(phi), minimum=minimum, network_time=network_time),
        ],
        latents=world.noise(1),
        sigmas=sigmas,
        network=network,
    )
    steps = result.trace.steps
    assert [step.index for step in steps] == list(range(len(phi)))
    assert steps[0].start == sigmas[0]
    assert steps[-1].end == 0.0
    for before, after in pairwise(steps):
        assert after.start == before.end  # no time is lost between steps
    assert all(0.0 <= step.end <= step.start for step in steps)
    assert all(step.end > 0.0 for step in steps[:-1])
    spent = sum(Fraction(step.start) - Fraction(step.end) for step in steps)
    assert spent == Fraction(sigmas[0])
    for step in steps:
        at = sigmas[step.index] if network_time == "nominal" else step.start
        assert step.time == 1000.0 * at
    told = [step.time for step in steps if step.computed]
    assert network.times == pytest.approx(told, rel=1e-6)  # float32 times


@patient
@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=15), st.data())
def test_the_papers_recursion_on_a_uniform_grid(
    world: SimpleNamespace, phi: list[float], data: st.DataObject
) -> None:
    steps = len(phi)
    inner = data.draw(st.sets(st.integers(0, steps - 1)))
    computed = inner | {0, steps - 1}
    result = world.run(
        [SkipPolicy(steps=tuple(computed)), TimestepAdjuster(phi=tuple(phi), minimum=0.01)],
        latents=world.noise(1),
        num_steps=steps,
        solver=FlowEuler(shift=1.0),
    )
    got = [step.start - step.end for step in result.trace.steps]
    assert got == pytest.approx(recursion(phi, computed), abs=1e-9)
    assert sum(recursion(phi, computed)) == pytest.approx(1.0, abs=1e-9)


def test_by_hand() -> None:
    # 4 uniform steps, step 1 reused with phi 0.5: 1/4, then 3/4 / 3 * 1/2, then the rest in two
    sizes = recursion([1.0, 0.5, 1.0, 1.0], {0, 2, 3})
    assert sizes == [0.25, 0.125, 0.3125, 0.3125]


def intervals(result: Result) -> list[tuple[float, float, float]]:
    return [(step.start, step.end, step.time) for step in result.trace.steps]


@pytest.mark.parametrize("network_time", ["nominal", "actual"])
@pytest.mark.parametrize("solver", [FlowEuler(), FlowEuler(shift=1.0), DDIM()])
def test_phi_one_is_no_adjuster_bit_for_bit(
    world: SimpleNamespace, network_time: Any, solver: Any
) -> None:
    skip = SkipPolicy(every=3)
    without = world.run([skip], solver=solver)
    adjuster = TimestepAdjuster(phi=(1.0,) * 8, network_time=network_time)
    with_one = world.run([skip, adjuster], solver=solver)
    assert torch.equal(with_one.sample, without.sample)
    assert intervals(with_one) == intervals(without)
    assert with_one.trace.reused_calls == without.trace.reused_calls == 4


def test_phi_counts_on_reused_steps_only(world: SimpleNamespace) -> None:
    adjuster = TimestepAdjuster(phi=(0.5,) * 8)
    assert torch.equal(world.run([adjuster]).sample, world.run().sample)
    assert torch.equal(
        world.run([SkipPolicy(evenly=8), adjuster]).sample, world.run([SkipPolicy(evenly=8)]).sample
    )


def test_nominal_and_actual_times_differ_and_so_do_the_samples(world: SimpleNamespace) -> None:
    skip = SkipPolicy(steps=(0, 2, 4, 6))
    phi = (0.5,) * 8
    nominal = world.run([skip, TimestepAdjuster(phi=phi, network_time="nominal")])
    actual = world.run([skip, TimestepAdjuster(phi=phi, network_time="actual")])
    grid = FlowEuler().schedule(8)
    assert [s.time for s in nominal.trace.steps] == list(grid.times[:-1])
    assert [s.time for s in actual.trace.steps] == [1000.0 * s.start for s in actual.trace.steps]
    # after step 1 the trajectory lags behind the grid in both
    for result in (nominal, actual):
        assert all(s.start > grid.sigmas[s.index] for s in result.trace.steps[2:])
    assert [s.start for s in nominal.trace.steps] == [s.start for s in actual.trace.steps]
    assert not torch.equal(nominal.sample, actual.sample)


@pytest.mark.parametrize("minimum", [0.05, 0.2, 0.7, 1.0])
def test_phi_is_bounded_below(world: SimpleNamespace, minimum: float) -> None:
    adjuster = TimestepAdjuster(phi=(0.0, 0.1, 0.5, 0.9, 1.0), minimum=minimum)
    assert [adjuster.phi_of(0, i) for i in range(5)] == [
        max(minimum, value) for value in (0.0, 0.1, 0.5, 0.9, 1.0)
    ]
    result = world.run(
        [SkipPolicy(steps=(0,)), TimestepAdjuster(phi=(0.0,) * 4, minimum=minimum)],
        num_steps=4,
        solver=FlowEuler(shift=1.0),
    )
    got = [step.start - step.end for step in result.trace.steps]
    assert got == pytest.approx(recursion([minimum] * 4, {0, 3}), abs=1e-12)


@pytest.mark.parametrize("form", ["velocity", "difference"])
def test_phi_of_a_profile_by_source_and_step(world: SimpleNamespace, form: Any) -> None:
    profile = world.calibrate(guidance=world.cfg)
    adjuster = TimestepAdjuster(profile=profile, form=form, minimum=0.01)
    table = phi_table(profile, form)
    for j, i in ((0, 1), (2, 5), (5, 6)):
        assert adjuster.phi_of(j, i) == max(0.01, float(table[j, i]))
    result = world.run([SkipPolicy(steps=(0, 3, 7)), adjuster], guidance=world.cfg)
    grid = FlowEuler().schedule(8).sigmas
    for step in result.trace.steps[:-1]:
        source = step.calls[0].source
        factor = 1.0 if source is None else max(0.01, float(table[source, step.index]))
        scale = step.start / grid[step.index]
        nominal = grid[step.index] - grid[step.index + 1]
        assert step.start - step.end == pytest.approx(nominal * scale * factor, abs=1e-12)
    assert [s.calls[0].source for s in result.trace.steps] == [None, 0, 0, None, 3, 3, 3, None]


def test_velocity_form_moves_further_than_difference_on_a_smooth_field(
    world: SimpleNamespace,
) -> None:
    # the displacement of the latent counts as error, and is of the order of one step's change
    profile = world.calibrate(num_steps=30)
    plan = StepSchedule.of(range(0, 30, 3), 30, compute_last=True)
    velocity = TimestepAdjuster(profile=profile, minimum=1e-6).mean_phi(plan)
    difference = TimestepAdjuster(profile=profile, minimum=1e-6, form="difference").mean_phi(plan)
    assert difference < velocity < 1


def test_mean_phi() -> None:
    adjuster = TimestepAdjuster(phi=(1.0, 0.6, 0.1, 0.3, 1.0), minimum=0.2)
    assert adjuster.mean_phi(StepSchedule.of({0, 4}, 5)) == pytest.approx((0.6 + 0.2 + 0.3) / 3)
    assert adjuster.mean_phi(StepSchedule.of(range(5), 5)) == 1.0


def test_a_run_that_starts_later(world: SimpleNamespace) -> None:
    result = world.run([SkipPolicy(steps=(3, 5)), TimestepAdjuster(phi=(0.5,) * 8)], first=3)
    grid = FlowEuler().schedule(8).sigmas
    assert result.trace.steps[0].start == grid[3]
    assert result.trace.steps[-1].end == 0.0
    spent = sum(Fraction(s.start) - Fraction(s.end) for s in result.trace.steps)
    assert spent == Fraction(grid[3])


def test_a_solver_with_memory_is_refused_when_it_is_built() -> None:
    adjuster = TimestepAdjuster(phi=(0.9,) * 50)
    message = r"TimestepAdjuster.* requires first_order, which FlowAdamsBashforth2 does not offer"
    with pytest.raises(CapabilityError, match=message):
        SamplingLoop(Engine([adjuster]), FlowAdamsBashforth2())
    with pytest.raises(CapabilityError, match=message):
        Sampler([adjuster], solver=FlowAdamsBashforth2())


def test_two_adjusters_are_refused_when_they_are_built() -> None:
    with pytest.raises(ConflictError, match="the interval has one owner"):
        Engine([TimestepAdjuster(phi=(0.9,)), TimestepAdjuster(phi=(0.8,))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": (0.5,), "minimum": 0.0}, r"minimum=0.0\): it must be in \(0, 1\]"),
        ({"phi": (0.5,), "minimum": 1.5}, r"minimum=1.5"),
        ({"phi": (0.5,), "minimum": float("nan")}, r"minimum=nan"),
        ({"phi": (0.5, 1.1)}, r"every value must be in \[0, 1\]"),
        ({"phi": (-0.1,)}, r"every value must be in \[0, 1\]"),
        ({"phi": (float("nan"),)}, r"every value must be in \[0, 1\]"),
        ({"phi": (0.5,), "profile": "some.safetensors"}, "profile and phi; give one"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        TimestepAdjuster(**options)


def test_phi_of_another_length_and_none_at_all(world: SimpleNamespace) -> None:
    with pytest.raises(PolicyError, match="has 5 values of phi, the run 8 steps"):
        world.run([TimestepAdjuster(phi=(0.9,) * 5)])
    with pytest.raises(PolicyError, match=r"TimestepAdjuster.* needs profile="):
        Engine([TimestepAdjuster()])
