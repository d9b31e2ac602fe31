"""Solvers: schedules, order of convergence, agreement with diffusers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import (
    DDIM,
    Engine,
    FlowAdamsBashforth2,
    FlowEuler,
    Policy,
    Request,
    Reuse,
    SamplingLoop,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError, InputError
from erta_policies.ertacache import TimestepAdjuster


def error_on_a_known_flow(solver, steps):
    """dx/dsigma = cos(3 sigma) * x has x(0) = x(1) * exp(-sin(3) / 3)."""
    schedule = solver.schedule(steps)
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    request = Request(latents=x, cond=torch.zeros(1, 1), schedule=schedule)

    def velocity(x, t, c):
        return torch.cos(3.0 * t.double() / 1000.0).reshape(-1, 1, 1) * x

    done = SamplingLoop(Engine([]), solver).run(velocity, request)
    return abs(done.sample.item() - math.exp(-math.sin(3.0) / 3.0))


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (FlowEuler(shift=1.0), 1),
        (FlowEuler(shift=3.0), 1),
        (FlowAdamsBashforth2(shift=1.0), 2),
        (FlowAdamsBashforth2(shift=3.0), 2),
    ],
    ids=repr,
)
def test_order_of_convergence(solver, order):
    coarse, fine = error_on_a_known_flow(solver, 100), error_on_a_known_flow(solver, 200)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_flow_euler_follows_diffusers():
    solver = FlowEuler(shift=3.0)
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    schedule = solver.schedule(10)
    theirs.set_timesteps(sigmas=list(schedule.sigmas[:-1]))
    torch.testing.assert_close(theirs.sigmas, torch.tensor(schedule.sigmas))
    torch.testing.assert_close(theirs.timesteps, torch.tensor(schedule.times[:-1]))
    x = y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(theirs.timesteps):
        x, _ = solver.step(x, 0.3 * x + 0.1, schedule.interval(i), None)
        y = theirs.step(0.3 * y + 0.1, t, y).prev_sample
    torch.testing.assert_close(x, y)


def test_shifted_grid_is_that_of_diffusers():
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    uniform = [1 - i / 10 for i in range(10)]
    theirs.set_timesteps(sigmas=uniform)
    torch.testing.assert_close(
        theirs.sigmas, torch.tensor(FlowEuler(shift=3.0).schedule(10).sigmas)
    )


# numbers that divide 1000: otherwise diffusers steps to t - 1000 // n, which is not on its own grid
@pytest.mark.parametrize("steps", [1, 8, 10, 50])
def test_ddim_follows_diffusers(steps):
    solver = DDIM()
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    theirs.set_timesteps(steps)
    schedule = solver.schedule(steps)
    assert [int(t) for t in theirs.timesteps] == [int(t) for t in schedule.times[:-1]]
    x = y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(theirs.timesteps):
        x, _ = solver.step(x, 0.3 * x + 0.1, schedule.interval(i), None)
        y = theirs.step(0.3 * y + 0.1, t, y).prev_sample
    # diffusers keeps its alphas in float32
    torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_ddim_time_inverts_its_table():
    solver = DDIM(train_steps=100)
    schedule = solver.schedule(20)
    for sigma, time in zip(schedule.sigmas[:-1], schedule.times[:-1], strict=True):
        assert solver.time_of(sigma) == pytest.approx(time, abs=1e-9)
    assert solver.time_of(0.0) == 0.0
    assert solver.time_of(1e9) == 99.0


def test_ddim_takes_an_exact_noise_prediction_to_the_clean_sample():
    clean, noise = torch.full((1, 2, 2), 0.75), torch.full((1, 2, 2), -1.5)
    solver = DDIM()
    schedule = solver.schedule(5)
    x = solver.noised(clean, noise, schedule.sigmas[0])
    for i in range(5):
        x, _ = solver.step(x, noise, schedule.interval(i), None)
    torch.testing.assert_close(x, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", [FlowEuler(), FlowAdamsBashforth2()], ids=repr)
def test_noised_flow_latents(solver):
    clean, noise = torch.full((1, 2), 4.0), torch.full((1, 2), -2.0)
    assert torch.equal(solver.noised(clean, noise, 0.25), torch.full((1, 2), 2.5))
    assert solver.noised(None, noise, 0.25) is noise


@pytest.mark.parametrize(
    "sigmas",
    [[], [0.0], [1.0, 1.0, 0.0], [0.5, 0.7], [1.0, -0.5], [math.inf, 0.5], [1.0, math.nan, 0.0]],
    ids=str,
)
@pytest.mark.parametrize("solver", [FlowEuler(), FlowAdamsBashforth2(), DDIM()], ids=repr)
def test_impossible_sigmas(solver, sigmas):
    with pytest.raises(InputError, match="fall strictly towards 0"):
        solver.schedule(10, sigmas)


def test_final_zero_is_appended():
    assert FlowEuler().schedule(0, [1.0, 0.5]).sigmas == (1.0, 0.5, 0.0)
    assert FlowEuler().schedule(0, [1.0, 0.5, 0.0]).sigmas == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("solver", [FlowEuler(), FlowAdamsBashforth2(), DDIM()], ids=repr)
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps(solver, steps):
    with pytest.raises(InputError, match=f"num_steps is {steps}, it must be at least 1"):
        solver.schedule(steps)


def test_more_steps_than_training_steps():
    with pytest.raises(InputError, match="num_steps 11 exceeds the 10 training steps"):
        DDIM(train_steps=10).schedule(11)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("solver", [FlowEuler, FlowAdamsBashforth2])
def test_impossible_shift(solver, shift):
    with pytest.raises(InputError, match=r"shift is .* positive and finite"):
        solver(shift=shift)


def test_moving_the_interval_needs_a_first_order_solver():
    adjuster = TimestepAdjuster(phi=(1.0,) * 4)
    for solver in (FlowEuler(), DDIM()):
        SamplingLoop(Engine([adjuster]), solver)
    with pytest.raises(CapabilityError) as error:
        SamplingLoop(Engine([adjuster]), FlowAdamsBashforth2())
    message = str(error.value)
    assert "TimestepAdjuster" in message
    assert "requires first_order" in message
    assert "FlowAdamsBashforth2" in message
    assert "velocity" in message


class Shrink(Policy):
    """Scales the nominal step of every interval; the last takes what remains."""

    traits = Traits(requires=frozenset({"first_order"}))
    phi: tuple[float, ...] = ()

    @hookimpl
    def adjust_interval(self, step):
        interval, sigmas = step.interval, step.session.sigmas
        if step.index == step.num_steps - 1:
            return replace(interval, end=sigmas[-1])
        size = (sigmas[step.index] - sigmas[step.index + 1]) * self.phi[step.index]
        return replace(interval, end=max(sigmas[-1], interval.start - size))


@st.composite
def grids_with_phi(draw):
    steps = draw(st.integers(1, 10))
    gaps = draw(st.lists(st.floats(1e-3, 1.0), min_size=steps, max_size=steps))
    total = sum(gaps)
    sigmas = [sum(gaps[i:]) / total for i in range(steps)]
    values = st.floats(0.0, 1.0, exclude_min=True)
    return sigmas, tuple(draw(st.lists(values, min_size=steps, max_size=steps)))


@pytest.mark.parametrize("kind", [Shrink, TimestepAdjuster])
@pytest.mark.parametrize("solver", [FlowEuler(), DDIM()], ids=repr)
@given(case=grids_with_phi(), reused=st.sets(st.integers(1, 9)))
@settings(max_examples=40, deadline=None)
def test_every_phi_on_every_grid_ends_at_exactly_zero(kind, solver, case, reused):
    class Skip(Policy):
        traits = Traits(static=True)

        @hookimpl
        def decide(self, step):
            return Reuse("drawn") if step.index in reused else None

    sigmas, phi = case
    schedule = solver.schedule(0, sigmas)
    request = Request(latents=torch.ones(1, 1, 1), cond=torch.zeros(1, 1), schedule=schedule)
    loop = SamplingLoop(Engine([Skip(), kind(phi=phi)]), solver)
    steps = loop.run(lambda x, t, c: 0.1 * x, request).trace.steps
    assert steps[-1].end == 0.0
    assert steps[0].start == sigmas[0]
    assert all(a.end == b.start for a, b in pairwise(steps))
    assert all(step.end <= step.start for step in steps)
