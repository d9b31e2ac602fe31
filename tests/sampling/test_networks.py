"""Adapters of networks: each gives what the loop calls, checked against closed forms."""

from __future__ import annotations

import pytest
import torch

from erta_framework import Engine, FlowEuler, NoGuidance, Request, SamplingLoop
from erta_framework.errors import InputError
from erta_framework.sampling.networks import (
    convert_prediction,
    drop_condition,
    make_empty_condition,
    precondition_edm,
    reverse_time,
)
from erta_framework.sampling.solvers import (
    ContinuousVP,
    DiscreteVP,
    EDMSolver,
    Flow,
    FlowSolver,
    Parametrisation,
    VarianceExploding,
)

PROCESSES = [
    Flow(),
    DiscreteVP(),
    ContinuousVP(time_scale=999.0),
    VarianceExploding(),
]
PAIRS = [
    (process, given, wanted)
    for process in PROCESSES
    for given in process.predictions
    for wanted in process.predictions
]


def run(solver, network, steps=10, start=None):
    schedule = solver.schedule(steps)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(2, 1, 4) if start is None else start
    latents = solver.noised(None, x, schedule.sigmas[0])
    request = Request(latents=latents, cond=make_empty_condition(2), schedule=schedule)
    return SamplingLoop(Engine([]), solver, NoGuidance()).run(network, request).sample


def test_a_network_without_a_condition():
    seen = []

    def network(x, times):
        seen.append(times)
        return 0.5 * x

    plain = run(FlowEuler(), lambda x, times, condition: 0.5 * x)
    assert torch.equal(run(FlowEuler(), drop_condition(network)), plain)
    assert [float(times[0]) for times in seen] == pytest.approx(FlowEuler().schedule(10).times[:-1])
    assert seen[0].shape == (2,)
    assert make_empty_condition(3).shape == (3, 0)


@pytest.mark.parametrize("time_scale", [1.0, 1000.0])
@pytest.mark.parametrize("network_scale", [1.0, 999.0])
def test_a_flow_from_noise_at_0_to_data_at_1(gaussian, time_scale, network_scale):
    data = gaussian(Parametrisation(process=Flow(), prediction="velocity"))
    times_seen = []

    def rising(x, times, condition):
        """Predicts data - noise at t = 1 - sigma."""
        t = (times / network_scale).double().reshape(-1, 1, 1)
        times_seen.append(float(t[0]))
        return -data.predict(x, 1 - t)

    solver = FlowEuler(time_scale=time_scale)
    adapted = reverse_time(rising, time_scale=time_scale, network_scale=network_scale)
    falling = gaussian(solver.parts.form)
    torch.testing.assert_close(run(solver, adapted), run(solver, falling), rtol=1e-5, atol=1e-5)
    assert times_seen[0] == 0.0
    assert times_seen == sorted(times_seen)


def test_reversed_euler_is_euler_upwards():
    """The usual loop of such networks: x += dt * u(x, t) for t from 0 to 1."""

    def rising(x, times, condition):
        return torch.tanh(x) + times.reshape(-1, 1, 1)

    steps = 8
    ours = run(FlowEuler(shift=1.0, time_scale=1.0), reverse_time(rising, time_scale=1.0), steps)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(2, 1, 4)
    for i in range(steps):
        x = x + rising(x, torch.full((2,), i / steps), None) / steps
    torch.testing.assert_close(ours, x)


def test_preconditioning_around_a_network_of_zeros_is_exact_for_gaussian_data(gaussian):
    """N(0, sigma_data^2) has the denoiser c_skip * x, so F is 0."""
    solver = EDMSolver(integrator="dpmpp_2m")
    data = gaussian(solver.parts.form, mean=0.0, std=0.5)
    adapted = precondition_edm(lambda x, times, condition: torch.zeros_like(x), sigma_data=0.5)
    torch.testing.assert_close(run(solver, adapted), run(solver, data), rtol=1e-6, atol=1e-6)


def test_the_raw_network_sees_scaled_latents_and_a_quarter_of_the_log(gaussian):
    data = gaussian(Parametrisation(process=VarianceExploding(), prediction="sample"))

    def raw(scaled, noise, condition):
        sigma = (4 * noise).exp().reshape(-1, 1, 1)
        total = sigma**2 + 0.25
        x = scaled * total.sqrt()
        return (data.predict(x, sigma) - 0.25 / total * x) / (0.5 * sigma / total.sqrt())

    x = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([80.0, 1.0, 0.05], dtype=torch.float64)
    found = precondition_edm(raw)(x, sigma, make_empty_condition(3))
    torch.testing.assert_close(found, data.predict(x, sigma.reshape(-1, 1, 1)))


@pytest.mark.parametrize("sigma_data", [0.0, -1.0])
def test_impossible_sigma_data(sigma_data):
    with pytest.raises(InputError, match=f"sigma_data is {sigma_data}, it must be positive"):
        precondition_edm(lambda x, times, condition: x, sigma_data=sigma_data)


@pytest.mark.parametrize(("process", "given", "wanted"), PAIRS, ids=str)
def test_every_prediction_converts_into_every_other(gaussian, process, given, wanted):
    source = gaussian(Parametrisation(process=process, prediction=given))
    target = gaussian(Parametrisation(process=process, prediction=wanted))
    converted = convert_prediction(source, process, given=given, wanted=wanted)
    x = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([process.time_of(s) for s in (0.9, 0.4, 0.05)], dtype=torch.float64)
    found = converted(x, times, make_empty_condition(3))
    torch.testing.assert_close(found, target(x, times, None), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_score_is_the_gradient_of_the_log_density(gaussian, process):
    wanted = process.predictions[0]
    data = gaussian(Parametrisation(process=process, prediction=wanted))

    def score(x, times, condition):
        alpha, level = process.scales(process.sigma_at(times).reshape(-1, 1, 1))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            variance = alpha**2 * data.std**2 + level**2
            log_density = -((x - alpha * data.mean) ** 2) / (2 * variance)
            (gradient,) = torch.autograd.grad(log_density.sum(), x)
        return gradient

    converted = convert_prediction(score, process, given="score", wanted=wanted)
    x = torch.randn(3, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([process.time_of(s) for s in (0.9, 0.4, 0.05)], dtype=torch.float64)
    torch.testing.assert_close(
        converted(x, times, make_empty_condition(3)), data(x, times, None), rtol=1e-9, atol=1e-9
    )


def test_a_converted_clean_sample_is_sampled_like_the_solver_that_takes_it(gaussian):
    network = gaussian(FlowSolver(prediction="sample").parts.form)
    direct = run(FlowSolver(prediction="sample"), network)
    velocity = convert_prediction(network, Flow(), given="sample", wanted="velocity")
    torch.testing.assert_close(run(FlowEuler(), velocity), direct, rtol=1e-5, atol=1e-6)


def test_adapters_nest():
    network = reverse_time(drop_condition(lambda x, times: torch.tanh(x)), time_scale=1000.0)
    plain = run(FlowEuler(), lambda x, times, condition: -torch.tanh(x))
    assert torch.equal(run(FlowEuler(), network), plain)


@pytest.mark.parametrize(("given", "wanted"), [("v_prediction", "velocity"), ("sample", "epsilon")])
def test_predictions_that_flows_do_not_have(given, wanted):
    with pytest.raises(InputError, match="with Flow a network predicts velocity or sample"):
        convert_prediction(lambda x, t, c: x, Flow(), given=given, wanted=wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_run_in_the_dtype_of_the_loop(dtype):
    start = torch.ones(2, 1, 4, dtype=dtype)
    sample = run(EDMSolver(), precondition_edm(lambda x, t, c: x), 3, start)
    assert sample.dtype == dtype
    assert sample.isfinite().all()
