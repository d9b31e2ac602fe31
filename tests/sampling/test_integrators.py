"""Steps of every process, prediction and integrator: order, ends, agreement with diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)

from erta_framework import DDIM, FlowAdamsBashforth2, FlowEuler
from erta_framework.sampling.solvers import (
    ComposedSolver,
    DPMSolverPP2M,
    EDMSolver,
    Euler,
    FlowSolver,
    Geometric,
    Karras,
    Schedule,
    Shifted,
    VPSolver,
)

INTEGRATORS = ("euler", "ab2", "dpmpp_2m")
# tensors of this torch under numpy 2, in diffusers
QUIET = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ORDER = {"euler": 1, "ab2": 2, "dpmpp_2m": 2}


def integrate(solver, network, x, sigmas):
    """Steps of the solver through `sigmas`, which need not end at 0."""
    schedule, state = Schedule(tuple(sigmas), tuple(sigmas)), None
    for i in range(schedule.num_steps):
        x, state = solver.step(x, network(x, sigmas[i]), schedule.interval(i), state)
    return x


# ------------------------------------------------------------------------------- mathematics
def error(solver, steps, gaussian, begin):
    high, low = (0.9, 0.1) if isinstance(solver, FlowSolver) else (5.0, 0.1)
    sigmas = Geometric(sigma_max=high, sigma_min=low).sigmas(steps + 1)[:-1]
    data, x = gaussian(solver.parts.form), begin(solver, high)
    return float((integrate(solver, data.predict, x, sigmas) - data.flow(x, high, low)).abs().max())


def test_order_of_convergence(any_solver, gaussian, begin):
    coarse, fine = (error(any_solver, steps, gaussian, begin) for steps in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(ORDER[any_solver.integrator], abs=0.06)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_predictions_of_one_network_agree_to_float_precision(
    recipe, integrator, predictions, gaussian, begin
):
    samples = []
    for prediction in predictions[recipe]:
        solver = recipe(prediction=prediction, integrator=integrator)
        sigmas = solver.schedule(12).sigmas
        data = gaussian(solver.parts.form)
        samples.append(integrate(solver, data.predict, begin(solver, sigmas[0]), sigmas))
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-11, atol=1e-11)


def test_every_solver_ends_near_the_exact_sample(any_solver, gaussian, begin):
    solver, schedule = any_solver, any_solver.schedule(100)
    assert schedule.sigmas[-1] == 0.0
    data, x = gaussian(solver.parts.form), begin(solver, schedule.sigmas[0])
    sample = integrate(solver, data.predict, x, schedule.sigmas)
    exact = data.flow(x, schedule.sigmas[0], 0.0)
    assert float((sample - exact).abs().max()) < (0.06 if solver.integrator == "euler" else 0.02)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_an_exact_prediction_leads_to_the_clean_sample(any_solver, steps):
    solver = any_solver
    clean = torch.tensor([[0.75, -0.5]], dtype=torch.float64)
    noise = torch.tensor([[-1.5, 0.25]], dtype=torch.float64)
    sigmas, form = solver.schedule(steps).sigmas, solver.parts.form

    def network(x, sigma):
        return form.predict(x, clean, noise, sigma)

    sample = integrate(solver, network, solver.noised(clean, noise, sigmas[0]), sigmas)
    torch.testing.assert_close(sample, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("integrator", ["euler", "dpmpp_2m"])
def test_the_last_step_gives_the_predicted_clean_sample_exactly(recipe, integrator, begin):
    solver = recipe(prediction="sample", integrator=integrator)
    schedule = solver.schedule(4)
    x = begin(solver, 1.0, torch.float32)
    state = None
    for i in range(4):
        output = torch.tanh(x) * (1.0 + 0.1 * i)
        x, state = solver.step(x, output, schedule.interval(i), state)
    assert torch.equal(x, output)


def test_state_is_explicit(any_solver, begin):
    solver = any_solver
    schedule, x = solver.schedule(3), begin(solver, 1.0)
    kept = x.clone()
    _, state = solver.step(x, 0.5 * x, schedule.interval(0), None)
    first, _ = solver.step(x, 0.3 * x, schedule.interval(1), state)
    solver.step(x, 7.0 * x, schedule.interval(2), (x, -0.1))
    again, _ = solver.step(x, 0.3 * x, schedule.interval(1), state)
    assert torch.equal(first, again)
    assert torch.equal(x, kept)
    assert (state is None) == (solver.integrator == "euler")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_latents_keep_their_dtype(any_solver, dtype, begin):
    solver = any_solver
    schedule, x, state = solver.schedule(3), begin(solver, 1.0, dtype), None
    for i in range(3):
        x, state = solver.step(x, 0.1 * x, schedule.interval(i), state)
        assert x.dtype == dtype


# ------------------------------------------------------------------------------ capabilities
def test_declared_capabilities(any_solver):
    solver = any_solver
    order = {"first_order"} if solver.integrator == "euler" else set()
    exploding = type(solver).__name__ in ("VESolver", "EDMSolver")
    traits = {"variance_exploding"} if exploding else set()
    assert solver.capabilities == {solver.prediction, *order, *traits}


@pytest.mark.parametrize(
    ("solver", "capabilities", "spelled"),
    [
        (FlowEuler(), {"first_order", "velocity"}, "FlowEuler(shift=3.0, time_scale=1000.0)"),
        (
            FlowAdamsBashforth2(shift=5.0),
            {"velocity"},
            "FlowAdamsBashforth2(shift=5.0, time_scale=1000.0)",
        ),
        (
            DDIM(),
            {"first_order", "epsilon"},
            "DDIM(train_steps=1000, beta_start=0.00085, beta_end=0.012)",
        ),
    ],
)
def test_what_profiles_hold_of_the_first_three_solvers(solver, capabilities, spelled):
    assert solver.capabilities == capabilities
    assert repr(solver) == spelled
    assert solver.prediction in capabilities


# ------------------------------------------------------------------- agreement of our own
@pytest.mark.parametrize(
    ("named", "general"),
    [
        (FlowEuler(shift=2.0), FlowSolver(shift=2.0)),
        (FlowAdamsBashforth2(), FlowSolver(integrator="ab2")),
        (DDIM(), VPSolver()),
        (
            FlowEuler(),
            ComposedSolver(form=FlowSolver().parts.form, grid=Shifted(), integrator=Euler()),
        ),
    ],
    ids=repr,
)
def test_named_and_general_solvers_are_one(named, general, begin):
    assert named.schedule(9) == general.schedule(9)
    schedule = named.schedule(9)
    x = y = begin(named, 1.0, torch.float32)
    mine = theirs = None
    for i in range(9):
        x, mine = named.step(x, torch.tanh(x), schedule.interval(i), mine)
        y, theirs = general.step(y, torch.tanh(y), schedule.interval(i), theirs)
        assert torch.equal(x, y)


# --------------------------------------------------------------------- agreement with diffusers
def compare(begin, solver, theirs, steps, **tolerance):
    """The same made-up outputs through both, on our sigmas."""
    schedule = solver.schedule(steps)
    x = y = begin(solver, schedule.sigmas[0], torch.float32)
    state = None
    for i, t in enumerate(theirs.timesteps):
        output = torch.sin(3.0 * x) + 0.1 * i
        y = theirs.step(output, t, y).prev_sample
        x, state = solver.step(x, output, schedule.interval(i), state)
        torch.testing.assert_close(x, y, **tolerance)


VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLOSE = {"rtol": 2e-4, "atol": 2e-4}  # diffusers keeps its alphas in float32


@QUIET
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 10, 20])
def test_dpm_solver_follows_diffusers(prediction, steps, begin):
    solver = VPSolver(prediction=prediction, integrator="dpmpp_2m")
    theirs = DPMSolverMultistepScheduler(
        **VP, prediction_type=prediction, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    schedule = solver.schedule(steps)
    torch.testing.assert_close(theirs.sigmas, torch.tensor(schedule.sigmas), **CLOSE)
    assert [int(t) for t in theirs.timesteps] == [int(t) for t in schedule.times[:-1]]
    compare(begin, solver, theirs, steps, rtol=5e-4, atol=1e-3)


@QUIET
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpm_solver_on_karras_sigmas_follows_diffusers(prediction, begin):
    solver = VPSolver(prediction=prediction, integrator="dpmpp_2m", grid="karras")
    theirs = DPMSolverMultistepScheduler(**VP, prediction_type=prediction, use_karras_sigmas=True)
    theirs.set_timesteps(12)
    schedule = solver.schedule(12)
    torch.testing.assert_close(theirs.sigmas, torch.tensor(schedule.sigmas), **CLOSE)
    # diffusers rounds its timesteps
    for mine, other in zip(schedule.times[:-1], theirs.timesteps.tolist(), strict=True):
        assert abs(mine - other) <= 0.51
    compare(begin, solver, theirs, 12, rtol=5e-4, atol=1e-3)


@QUIET
@pytest.mark.parametrize("steps", [5, 25])
def test_dpm_solver_of_flows_follows_diffusers(steps, begin):
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs.set_timesteps(steps)
    solver = FlowSolver(integrator="dpmpp_2m")
    schedule = solver.schedule(steps, theirs.sigmas.tolist())
    x = y = begin(solver, 1.0, torch.float32)
    state = None
    for i, t in enumerate(theirs.timesteps):
        output = torch.sin(3.0 * x) + 0.1 * i
        y = theirs.step(output, t, y).prev_sample
        x, state = solver.step(x, output, schedule.interval(i), state)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_follows_diffusers(prediction, betas, begin):
    theirs = DDIMScheduler(
        beta_schedule=betas,
        beta_start=0.001,
        beta_end=0.015,
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type=prediction,
    )
    theirs.set_timesteps(10)
    solver = VPSolver(
        beta_start=0.001,
        beta_end=0.015,
        betas="cosine" if betas == "squaredcos_cap_v2" else betas,
        prediction=prediction,
    )
    # epsilon is divided by the clean part's factor, which is 1e-4 of the noise with cosine betas
    wide = prediction == "epsilon" and betas == "squaredcos_cap_v2"
    compare(begin, solver, theirs, 10, rtol=2e-2 if wide else 5e-4, atol=2e-3)


@pytest.mark.parametrize(
    ("integrator", "scheduler"),
    [("euler", EDMEulerScheduler), ("dpmpp_2m", EDMDPMSolverMultistepScheduler)],
)
@pytest.mark.parametrize("steps", [3, 18])
def test_edm_follows_diffusers(integrator, scheduler, steps, begin):
    """Theirs take the raw network's output; ours what the preconditioning makes of it."""
    theirs = scheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    theirs.set_timesteps(steps)
    solver = EDMSolver(integrator=integrator)
    schedule = solver.schedule(steps)
    torch.testing.assert_close(theirs.sigmas, torch.tensor(schedule.sigmas), rtol=1e-5, atol=1e-5)
    x = y = begin(solver, schedule.sigmas[0], torch.float32)
    state = None
    for i, t in enumerate(theirs.timesteps):
        sigma = schedule.sigmas[i]
        assert float(t) == pytest.approx(math.log(sigma) / 4, abs=1e-5)
        scaled = theirs.scale_model_input(y, t)
        raw = torch.sin(3.0 * scaled)
        total = sigma**2 + 0.25
        clean = 0.25 / total * y + sigma * 0.5 / math.sqrt(total) * raw
        y = theirs.step(raw, t, y).prev_sample
        x, state = solver.step(x, clean, schedule.interval(i), state)
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_karras_sigmas_of_a_composed_solver():
    form = VPSolver().parts.form
    solver = ComposedSolver(
        form=form, grid=Karras(sigma_max=14.0, sigma_min=0.1), integrator=DPMSolverPP2M()
    )
    schedule = solver.schedule(6)
    assert (schedule.sigmas[0], schedule.sigmas[-2]) == (14.0, 0.1)
    assert schedule.times == tuple(form.process.time_of(sigma) for sigma in schedule.sigmas)
