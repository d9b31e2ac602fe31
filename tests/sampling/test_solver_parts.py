"""Noise processes, parametrisations and sigma grids: their algebra, their ends, their refusals."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework.errors import InputError
from erta_framework.sampling.solvers import (
    ContinuousVP,
    ContinuousVPSolver,
    DiscreteVP,
    EDMSolver,
    Flow,
    FlowSolver,
    Geometric,
    Karras,
    Parametrisation,
    Shifted,
    Trailing,
    UniformTime,
    VarianceExploding,
    VESolver,
    VPSolver,
)

PROCESSES = [
    Flow(),
    Flow(time_scale=1.0),
    DiscreteVP(),
    DiscreteVP(train_steps=200, betas="cosine"),
    DiscreteVP(beta_start=0.0001, beta_end=0.02, betas="linear"),
    ContinuousVP(),
    ContinuousVP(time_scale=999.0),
    VarianceExploding(),
]
FORMS = [
    Parametrisation(process=process, prediction=prediction)
    for process in PROCESSES
    for prediction in process.predictions
]
CLEAN = torch.tensor([[1.5, -0.5, 2.0]], dtype=torch.float64)
NOISE = torch.tensor([[0.25, 1.0, -1.75]], dtype=torch.float64)


# ------------------------------------------------------------------------------ processes
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.3, 0.9])
def test_stretched_latents_move_on_a_line_in_sigma(process, sigma):
    x = process.noised(CLEAN, NOISE, sigma)
    alpha, level = process.scales(sigma)
    torch.testing.assert_close(x, alpha * CLEAN + level * NOISE)
    line = CLEAN + sigma * process.slope(CLEAN, NOISE)
    torch.testing.assert_close(process.stretch(sigma) * x, line)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_timestep_can_be_inverted(process):
    sigmas = torch.tensor([0.04, 0.3, 0.5, 0.9], dtype=torch.float64)
    times = torch.tensor([process.time_of(float(s)) for s in sigmas], dtype=torch.float64)
    torch.testing.assert_close(process.sigma_at(times), sigmas)
    assert process.time_of(0.0) == 0.0


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_scales_of_a_tensor_are_those_of_its_numbers(process):
    sigmas = torch.tensor([0.1, 0.7], dtype=torch.float64)
    alphas, levels = process.scales(sigmas)
    for k, sigma in enumerate(sigmas.tolist()):
        alpha, level = process.scales(sigma)
        assert (alphas[k].item(), levels[k].item()) == pytest.approx((alpha, level), rel=1e-15)


def test_variance_preserving_scales_keep_the_variance():
    for process in (DiscreteVP(), ContinuousVP()):
        for sigma in (0.0, 0.3, 14.0, 150.0):
            alpha, level = process.scales(sigma)
            assert alpha**2 + level**2 == pytest.approx(1.0)


def test_where_sampling_begins():
    assert VarianceExploding().noised(None, NOISE, 80.0).equal(80.0 * NOISE)
    for process in (Flow(), DiscreteVP(), ContinuousVP()):
        assert process.noised(None, NOISE, 0.9) is NOISE


def test_continuous_betas_are_those_of_the_sde():
    process = ContinuousVP(beta_min=0.1, beta_max=20.0)
    steps = 20_000
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    integral = float((0.1 + t * 19.9).mean())  # of beta from 0 to 1
    alpha, level = process.scales(float(process.sigma_at(torch.ones(1, dtype=torch.float64))))
    assert alpha == pytest.approx(math.exp(-integral / 2), rel=1e-9)
    assert level == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-9)


def test_betas_may_be_constant():
    process = ContinuousVP(beta_min=10.0, beta_max=10.0, time_scale=10.0)
    times = torch.tensor([0.5, 10.0], dtype=torch.float64)
    sigmas = process.sigma_at(times)
    torch.testing.assert_close(sigmas, times.expm1().sqrt())
    assert [process.time_of(sigma) for sigma in sigmas.tolist()] == pytest.approx([0.5, 10.0])


@pytest.mark.parametrize("betas", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_discrete_betas_are_those_of_diffusers(betas):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule=betas)
    ours = DiscreteVP(
        beta_start=0.001,
        beta_end=0.02,
        betas="cosine" if betas == "squaredcos_cap_v2" else betas,
    )
    alphas = theirs.alphas_cumprod.double()
    torch.testing.assert_close(
        torch.tensor(ours.training_sigmas, dtype=torch.float64),
        ((1 - alphas) / alphas).sqrt(),
        rtol=2e-3,  # diffusers multiplies in float32, up to 1 - abar of 1e-3 and abar of 1e-9
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flow(time_scale=0.0), "time_scale is 0.0, it must be positive and finite"),
        (lambda: DiscreteVP(train_steps=0), "train_steps is 0, it must be positive"),
        (lambda: DiscreteVP(beta_start=0.5, beta_end=0.1), "from 0.5 to 0.1; they must rise"),
        (lambda: DiscreteVP(betas="quadratic"), "betas is 'quadratic', it must be one of scaled"),
        (lambda: ContinuousVP(beta_max=0.05), "beta_max is 0.05, it must be above beta_min"),
        (lambda: ContinuousVP(time_scale=-1.0), "time_scale is -1.0, it must be positive"),
        (lambda: Karras(rho=0.0), "rho is 0.0, it must be positive"),
        (lambda: Karras(sigma_min=0.0), "sigma_min is 0.0, it must be positive"),
        (lambda: Karras(sigma_max=0.001), "sigma_max is 0.001, it must be above sigma_min"),
        (lambda: Geometric(sigma_max=math.inf), "sigma_max is inf, it must be positive and fin"),
        (lambda: UniformTime(process=ContinuousVP(), last_time=1.0), "last_time is 1.0, it must"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_numbers(make, message):
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value)


# ------------------------------------------------------------------------ parametrisations
@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 0.95])
def test_a_prediction_gives_back_clean_part_and_noise(form, sigma):
    x = form.process.noised(CLEAN, NOISE, sigma)
    output = form.predict(x, CLEAN, NOISE, sigma)
    torch.testing.assert_close(form.clean(x, output, sigma), CLEAN)
    torch.testing.assert_close(form.noise(x, output, sigma), NOISE)
    torch.testing.assert_close(form.slope(x, output, sigma), form.process.slope(CLEAN, NOISE))


def test_v_is_that_of_its_paper():
    process = DiscreteVP()
    form = Parametrisation(process=process, prediction="v_prediction")
    alpha, level = process.scales(0.75)
    assert (alpha, level) == pytest.approx((0.8, 0.6))
    v = form.predict(process.noised(CLEAN, NOISE, 0.75), CLEAN, NOISE, 0.75)
    torch.testing.assert_close(v, 0.8 * NOISE - 0.6 * CLEAN)


@pytest.mark.parametrize(
    ("recipe", "prediction"),
    [
        (FlowSolver, "epsilon"),
        (FlowSolver, "v_prediction"),
        (VPSolver, "velocity"),
        (ContinuousVPSolver, "velocity"),
        (VESolver, "v_prediction"),
        (EDMSolver, "velocity"),
    ],
)
def test_predictions_that_a_process_has_no_networks_of(recipe, prediction):
    with pytest.raises(InputError) as error:
        recipe(prediction=prediction)
    message = str(error.value)
    assert f"prediction is {prediction!r}, but with" in message
    assert " or ".join(recipe().parts.form.process.predictions) in message


# ----------------------------------------------------------------------------------- grids
@st.composite
def ranges(draw):
    low = draw(st.floats(1e-4, 1.0))
    return low * draw(st.floats(1.5, 1e5)), low


@given(ends=ranges(), rho=st.floats(1.0, 10.0), steps=st.integers(1, 300))
@settings(max_examples=200)
def test_karras_grid(ends, rho, steps):
    high, low = ends
    grid = Karras(sigma_max=high, sigma_min=low, rho=rho).sigmas(steps)
    assert len(grid) == steps + 1
    assert all(a > b for a, b in pairwise(grid))
    assert grid[0] == high
    assert grid[-1] == 0.0
    assert steps == 1 or grid[-2] == low
    roots = [sigma ** (1 / rho) for sigma in grid[:-1]]
    gaps = [a - b for a, b in pairwise(roots)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-6) for gap in gaps)


@given(ends=ranges(), steps=st.integers(1, 300))
@settings(max_examples=100)
def test_geometric_grid(ends, steps):
    high, low = ends
    grid = Geometric(sigma_max=high, sigma_min=low).sigmas(steps)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, high, 0.0)
    assert all(a > b for a, b in pairwise(grid))
    assert steps == 1 or grid[-2] == low
    ratios = [b / a for a, b in pairwise(grid[:-1])]
    assert all(ratio == pytest.approx(ratios[0], rel=1e-6) for ratio in ratios)


@given(shift=st.floats(0.05, 20.0), steps=st.integers(1, 200))
def test_shifted_grid(shift, steps):
    grid = Shifted(shift=shift).sigmas(steps)
    assert (len(grid), grid[-1]) == (steps + 1, 0.0)
    assert grid[0] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(grid))


@given(steps=st.integers(1, 1000), betas=st.sampled_from(["scaled_linear", "linear", "cosine"]))
@settings(max_examples=60)
def test_trailing_grid_takes_training_sigmas_from_the_last(steps, betas):
    process = DiscreteVP(betas=betas)
    grid = Trailing(process=process).sigmas(steps)
    assert (len(grid), grid[0], grid[-1]) == (steps + 1, process.training_sigmas[-1], 0.0)
    assert all(a > b for a, b in pairwise(grid))
    assert set(grid[:-1]) <= set(process.training_sigmas)
    assert all(process.time_of(sigma).is_integer() for sigma in grid)


@given(steps=st.integers(1, 400), last=st.floats(1e-4, 0.1))
@settings(max_examples=60)
def test_uniform_time(steps, last):
    process = ContinuousVP(time_scale=999.0)
    grid = UniformTime(process=process, last_time=last).sigmas(steps)
    assert (len(grid), grid[-1]) == (steps + 1, 0.0)
    assert all(a > b for a, b in pairwise(grid))
    times = [process.time_of(sigma) / 999.0 for sigma in grid[:-1]]
    assert times[0] == pytest.approx(1.0)
    assert steps == 1 or times[-1] == pytest.approx(last)
    gaps = [a - b for a, b in pairwise(times)]
    assert all(gap == pytest.approx(gaps[0], rel=1e-6) for gap in gaps)


@pytest.mark.parametrize(
    "grid",
    [Shifted(), Trailing(process=DiscreteVP()), UniformTime(process=ContinuousVP()), Karras()],
    ids=repr,
)
@pytest.mark.parametrize("steps", [0, -2])
def test_no_steps(grid, steps):
    with pytest.raises(InputError, match=f"num_steps is {steps}, it must be at least 1"):
        grid.sigmas(steps)


def test_a_range_too_narrow_for_its_steps_is_refused():
    with pytest.raises(InputError, match="fall strictly towards 0"):
        Karras(sigma_max=1.0 + 4e-16, sigma_min=1.0).sigmas(50)
