"""Every solver under the sampling loop: nothing skipped, nothing changed; reuse; refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from erta_framework import (
    CFG,
    Engine,
    NoGuidance,
    Policy,
    Request,
    Reuse,
    Sampler,
    SamplingLoop,
    hookimpl,
)
from erta_framework.errors import CapabilityError
from erta_framework.sampling.networks import make_empty_condition
from erta_framework.sampling.solvers import EDMSolver, FlowSolver, VESolver, VPSolver
from erta_policies.ertacache import ResidualReuse, SkipPolicy, TimestepAdjuster
from erta_policies.forecast import Forecaster, MeanVelocity
from erta_policies.meancache import AverageVelocity

STEPS = 8


class Counted:
    """A network and how often it ran."""

    def __init__(self, network):
        self.network, self.calls, self.times = network, 0, []

    def __call__(self, x, times, condition):
        self.calls += 1
        self.times.append(float(times[0]))
        return self.network(x, times, condition)


@pytest.fixture
def sample(gaussian, begin):
    """Runs the loop with a solver and policies on Gaussian data."""

    def run(solver, policies=(), dtype=torch.float32):
        schedule = solver.schedule(STEPS)
        network = Counted(gaussian(solver.parts.form))
        start = begin(solver, schedule.sigmas[0], dtype)
        request = Request(latents=start, cond=make_empty_condition(len(start)), schedule=schedule)
        result = SamplingLoop(Engine(policies), solver, NoGuidance()).run(network, request)
        return SimpleNamespace(
            sample=result.sample, trace=result.trace, network=network, start=start
        )

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_skipped_is_the_plain_loop_bit_for_bit(any_solver, dtype, sample, gaussian):
    done, schedule = sample(any_solver, dtype=dtype), any_solver.schedule(STEPS)
    network, x, state = gaussian(any_solver.parts.form), done.start, None
    for i in range(STEPS):
        times = torch.full((len(x),), schedule.times[i])
        output = network(x, times, None).to(dtype)
        x, state = any_solver.step(x, output, schedule.interval(i), state)
    assert torch.equal(done.sample, x)
    assert done.sample.isfinite().all()
    assert done.network.calls == done.trace.network_calls == STEPS
    assert done.network.times == [pytest.approx(time) for time in schedule.times[:-1]]


@pytest.mark.parametrize("predictor", [ResidualReuse(), Forecaster(order=1)], ids=repr)
def test_reuse_saves_the_calls_it_says(any_solver, predictor, sample):
    skip = SkipPolicy(steps=(0, 1, 3, 5, 7))
    cached, full = sample(any_solver, [skip, predictor]), sample(any_solver)
    assert cached.network.calls == cached.trace.network_calls == 5
    assert cached.trace.computed_steps == (0, 1, 3, 5, 7)
    assert cached.sample.isfinite().all()
    assert not torch.equal(cached.sample, full.sample)


def test_a_reuse_of_the_very_output_changes_nothing(any_solver, sample):
    """A policy that answers with what the network would say leaves the sample as it is."""

    class Oracle(Policy):
        @hookimpl
        def decide(self, step):
            return Reuse("known") if step.index % 2 else None

        @hookimpl(wrapper=True)
        def forward(self, step, call):
            output = yield
            if not call.reused:
                return output
            times = torch.full((len(call.x),), step.interval.time)
            return network(call.x, times, None)

    network = sample(any_solver).network.network
    assert torch.equal(sample(any_solver, [Oracle()]).sample, sample(any_solver).sample)
    assert sample(any_solver, [Oracle()]).network.calls == STEPS // 2


def test_moving_the_interval_needs_a_first_order_solver(any_solver, sample):
    adjuster = TimestepAdjuster(phi=(0.9,) * STEPS)
    policies = [SkipPolicy(steps=(0, 1, 3, 5, 7)), adjuster]
    if any_solver.integrator == "euler":
        done = sample(any_solver, policies)
        assert done.trace.steps[-1].end == 0.0
        assert done.trace.network_calls == 5
        return
    name = type(any_solver).__name__
    with pytest.raises(CapabilityError, match=f"requires first_order, which {name} does not offer"):
        sample(any_solver, policies)


@pytest.mark.parametrize("policy", [MeanVelocity(), AverageVelocity()], ids=repr)
def test_policies_that_integrate_themselves_are_refused_by_multistep_solvers(
    any_solver, policy, sample
):
    needed = policy.traits.requires - any_solver.capabilities
    assert ("first_order" in needed) == (any_solver.integrator != "euler")
    if needed:
        with pytest.raises(CapabilityError, match=r"requires (first_order|velocity)"):
            SamplingLoop(Engine([policy]), any_solver)
    else:
        SamplingLoop(Engine([policy]), any_solver)


# ---------------------------------------------------------------------------------- sampler
class Model:
    """Gaussian data as a model of `Sampler`, which says what it predicts."""

    latent_shape = (1, 4)

    def __init__(self, network, prediction):
        self.network, self.prediction = network, prediction

    def fingerprint(self):
        return {"class": "Gaussian"}

    def encode(self, prompts):
        return make_empty_condition(len(prompts))

    def __call__(self, x, timestep, embeds):
        return self.network(x, timestep, embeds)


def test_sampler_takes_every_solver(any_solver, gaussian):
    model = Model(gaussian(any_solver.parts.form), any_solver.prediction)
    sampler = Sampler(solver=any_solver, guidance=NoGuidance(), num_steps=60)
    samples = sampler.sample(model, ["a"] * 256, seed=3).samples
    assert samples.mean().item() == pytest.approx(0.3, abs=0.05)
    assert samples.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("predicted", "suggested"),
    [
        ("sample", "VPSolver(prediction='sample')"),
        ("v_prediction", "VPSolver(prediction='v_prediction')"),
        ("velocity", "FlowEuler()"),
        ("epsilon", "DDIM()"),
    ],
)
def test_a_model_that_predicts_something_else_is_refused(gaussian, predicted, suggested):
    solver = VESolver() if predicted != "epsilon" else FlowSolver()
    model = Model(gaussian(solver.parts.form), predicted)
    with pytest.raises(CapabilityError) as error:
        Sampler(solver=solver, guidance=NoGuidance(), num_steps=4).sample(model, ["a"])
    assert f"Model predicts {predicted}" in str(error.value)
    assert str(error.value).endswith(f"such as {suggested}")


def test_pure_noise_is_scaled_and_noised_latents_are_not(gaussian):
    solver = EDMSolver()
    sampler = Sampler(solver=solver, guidance=NoGuidance(), num_steps=4)
    model, noise = Model(gaussian(solver.parts.form), "sample"), torch.ones(1, 1, 4)
    first = sampler.sample(model, ["a"], latents=noise).samples
    clean = torch.full((1, 1, 4), 0.25)
    sigma = sampler.schedule.sigmas[2]
    later = sampler.sample(model, ["a"], latents=clean + sigma * noise, first=2).samples
    same = sampler.sample(model, ["a"], latents=noise, init=clean, first=2).samples
    assert torch.equal(later, same)
    loop = SamplingLoop(Engine([]), solver)
    request = Request(latents=80.0 * noise, cond=make_empty_condition(1), schedule=sampler.schedule)
    assert torch.equal(first, loop.run(model, request).sample)


def test_v_prediction_at_two_conditions_is_guided():
    """Guidance combines raw outputs, of whatever prediction."""
    solver = VPSolver(prediction="v_prediction", integrator="dpmpp_2m")
    calls = []

    def network(x, times, condition):
        calls.append(len(x))
        return 0.1 * x + condition.reshape(-1, 1, 1)

    x = torch.ones(2, 1, 4)
    request = Request(
        latents=x,
        cond=torch.ones(2, 1),
        uncond=torch.zeros(2, 1),
        schedule=solver.schedule(3),
    )
    separate = SamplingLoop(Engine([]), solver, CFG(scale=2.0)).run(network, request)
    batched = SamplingLoop(Engine([]), solver, CFG(scale=2.0, batched=True)).run(network, request)
    assert calls == [2] * 6 + [4] * 3
    torch.testing.assert_close(separate.sample, batched.sample)
