"""The toys against independent mathematics: quadrature, autograd, exact trajectories."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework import CFG, DDIM, Engine, FlowAdamsBashforth2, FlowEuler, NoGuidance
from erta_framework.errors import InputError
from erta_framework.sampling import Request, SamplingLoop, TextModel, sample_noise
from erta_framework.testing import AffineFlow, GaussianEpsilon, GaussianMixtureFlow

TOYS = [AffineFlow(), GaussianMixtureFlow(), GaussianEpsilon()]
# with std 0.5 and shift 3 the h^2 and h^3 errors happen to cancel at about 150 steps
SMOOTH = AffineFlow((2, 3), std=0.8)
SIGMAS = [1e-3, 0.2, 0.5, 0.9, 1.0]


def ids(toy):
    return type(toy).__name__


# ------------------------------------------------------------------- velocity, independently
def quadrature(x, sigma, density, points=20_001, reach=8.0):
    """E[n - x0 | x] of one-dimensional data by numerical integration over x0."""
    # near sigma 0 the posterior is narrow, so the grid follows it
    width = min(reach, 12 * sigma / max(1 - sigma, 1e-9))
    centre = x / (1 - sigma) if width < reach else 0.0
    x0 = torch.linspace(centre - width, centre + width, points, dtype=torch.float64)
    n = (x - (1 - sigma) * x0) / sigma
    weight = density(x0) * torch.exp(-0.5 * n**2)
    return float((weight * (n - x0)).sum() / weight.sum())


def normal(x0, mean, std):
    return torch.exp(-0.5 * ((x0 - mean) / std) ** 2) / std


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("x", [-1.3, 0.2, 2.0])
def test_affine_velocity_is_the_posterior_mean(sigma, x):
    flow, shift = AffineFlow((1,), mean=0.4, std=0.6), 0.25
    value = flow.predict(
        torch.tensor([[x]], dtype=torch.float64), sigma, torch.tensor([[shift]]).double()
    )
    expected = quadrature(x, sigma, lambda x0: normal(x0, 0.65, 0.6))
    assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("x", [-1.3, 0.2, 2.0])
def test_mixture_velocity_is_the_posterior_mean(sigma, x):
    flow = GaussianMixtureFlow((1,), means=(-1.0, 0.8), stds=(0.3, 0.5), weights=(1.0, 3.0))
    value = flow.predict(
        torch.tensor([[x]], dtype=torch.float64), sigma, torch.tensor([[0.1]], dtype=torch.float64)
    )
    expected = quadrature(x, sigma, lambda x0: normal(x0, -0.9, 0.3) + 3 * normal(x0, 0.9, 0.5))
    assert float(value) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.95])
def test_mixture_velocity_follows_from_the_score_of_whole_samples(sigma):
    """E[n | x] = -sigma * grad log p(x); the components are shared by all elements."""
    flow = GaussianMixtureFlow((2, 3), means=(-0.5, 0.7), stds=(0.4, 0.8), weights=(2.0, 1.0))
    x = sample_noise((2, 3), [1, 2, 3], torch.float64).requires_grad_()
    shift = torch.tensor([[0.1, -0.2], [0.0, 0.3], [0.2, 0.2]], dtype=torch.float64)
    logs = []
    for mean, std, weight in zip(flow.means, flow.stds, flow.weights, strict=True):
        spread = math.sqrt((1 - sigma) ** 2 * std**2 + sigma**2)
        component = torch.distributions.Normal((1 - sigma) * (mean + shift[:, :, None]), spread)
        logs.append(math.log(weight) + component.log_prob(x).sum(dim=(1, 2)))
    (score,) = torch.autograd.grad(torch.stack(logs).logsumexp(dim=0).sum(), x)
    noise = -sigma * score
    clean = (x - sigma * noise) / (1 - sigma)
    value = flow.predict(x.detach(), sigma, shift)
    torch.testing.assert_close(value, (noise - clean).detach(), rtol=1e-9, atol=1e-9)


def test_affine_velocity_agrees_with_random_draws():
    """Among draws (x0, n) whose x falls close to a point, n - x0 averages to the velocity."""
    generator = torch.Generator().manual_seed(0)
    x0 = 0.3 + 0.5 * torch.randn(2_000_000, generator=generator)
    n = torch.randn(2_000_000, generator=generator)
    sigma, point = 0.6, 0.4
    near = ((1 - sigma) * x0 + sigma * n - point).abs() < 0.01
    drawn = float((n - x0)[near].mean())
    error = float((n - x0)[near].std()) / math.sqrt(int(near.sum()))
    value = float(AffineFlow((1,)).predict(torch.tensor([[point]]), sigma, torch.zeros(1, 1)))
    assert abs(drawn - value) < 4 * error + 1e-3


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_mixture_of_one_component_is_the_affine_flow(sigma):
    x, shift = sample_noise((3, 4), [1, 2], torch.float64), torch.tensor([[0.1], [0.2]]).double()
    one = GaussianMixtureFlow((3, 4), means=(0.3,), stds=(0.5,)).predict(x, sigma, shift)
    torch.testing.assert_close(one, AffineFlow((3, 4)).predict(x, sigma, shift))


def test_epsilon_is_the_posterior_mean_of_the_noise():
    toy, sigma = GaussianEpsilon((1,), mean=0.4, std=0.6), 0.8
    z = 1.1
    x0 = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    n = (z - x0) / sigma
    weight = normal(x0, 0.4, 0.6) * torch.exp(-0.5 * n**2)
    expected = float((weight * n).sum() / weight.sum())
    x = torch.tensor([[z / math.sqrt(1 + sigma**2)]], dtype=torch.float64)
    assert float(toy.predict(x, sigma, torch.zeros(1, 1))) == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------------------- trajectories
@pytest.mark.parametrize("toy", [AffineFlow(), GaussianEpsilon()], ids=ids)
def test_the_trajectory_solves_the_differential_equation(toy):
    x = sample_noise(toy.latent_shape, [1, 2], torch.float64)
    embeds = toy.encode(["a", "b"]).double()
    step = 1e-5
    for sigma in (0.9, 0.5, 0.1):
        here = toy.trajectory(x, 1.0, sigma, embeds)
        low, high = (toy.trajectory(x, 1.0, sigma + d, embeds) for d in (-step, step))
        slope = (high - low) / (2 * step)
        if isinstance(toy, GaussianEpsilon):  # dz/dsigma = epsilon, z = x * sqrt(1 + sigma^2)
            scaled = [
                v * math.sqrt(1 + s**2) for v, s in ((low, sigma - step), (high, sigma + step))
            ]
            slope = (scaled[1] - scaled[0]) / (2 * step)
        torch.testing.assert_close(slope, toy.predict(here, sigma, embeds), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(toy.trajectory(x, 1.0, 1.0, embeds), x)


def error_of(toy, solver, num_steps, guidance, effective):
    """Largest error of the sampled latents against the exact flow."""
    latents = sample_noise(toy.latent_shape, [1, 2], torch.float64)
    cond, uncond = toy.encode(["a", "b"]).double(), toy.encode(["", ""]).double()
    schedule = solver.schedule(num_steps)
    request = Request(latents=latents, cond=cond, uncond=uncond, schedule=schedule)
    sample = SamplingLoop(Engine(), solver, guidance).run(toy, request).sample
    exact = toy.trajectory(latents, schedule.sigmas[0], 0.0, effective(cond, uncond))
    return float((sample - exact).abs().max())


def order(toy, solver, counts, guidance=None, effective=lambda cond, uncond: cond):
    errors = [error_of(toy, solver, n, guidance or NoGuidance(), effective) for n in counts]
    return errors, math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_converges_with_order_one(shift):
    errors, rate = order(AffineFlow((2, 3)), FlowEuler(shift=shift), (100, 200))
    assert rate == pytest.approx(1.0, abs=0.05)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_adams_bashforth_converges_with_order_two(shift):
    errors, rate = order(SMOOTH, FlowAdamsBashforth2(shift=shift), (100, 200))
    assert rate == pytest.approx(2.0, abs=0.1)
    assert errors[-1] < 5e-4


def test_ddim_converges_with_order_one():
    errors, rate = order(GaussianEpsilon((2, 3)), DDIM(), (125, 250))
    assert rate == pytest.approx(1.0, abs=0.15)
    assert errors[-1] < 0.05


def test_guided_sampling_converges_to_the_flow_of_the_guided_condition():
    errors, rate = order(
        SMOOTH,
        FlowAdamsBashforth2(),
        (100, 200),
        CFG(scale=3.0),
        lambda cond, uncond: uncond + 3.0 * (cond - uncond),
    )
    assert rate == pytest.approx(2.0, abs=0.1)
    assert errors[-1] < 5e-3


# ----------------------------------------------------------------------------- behaviour
@pytest.mark.parametrize("toy", TOYS, ids=ids)
@pytest.mark.parametrize("sigma", [0.0, 1e-7, 0.5, 1 - 1e-7, 1.0])
def test_predictions_are_finite_at_both_ends(toy, sigma):
    x = 30 * sample_noise((3, 2, 4, 4), [1, 2])
    assert toy.predict(x, sigma, toy.encode(["a", "b"])).isfinite().all()


def test_mixture_is_finite_where_densities_underflow():
    flow = GaussianMixtureFlow((3, 64, 64), means=(-5.0, 5.0), stds=(1e-2, 1e-2))
    x = sample_noise((3, 64, 64), [1])
    assert flow.predict(x, 0.0, torch.zeros(1, 1)).isfinite().all()


@pytest.mark.parametrize("toy", TOYS, ids=ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (4, 1, 3, 2)])
def test_any_shape_and_dtype_is_kept(toy, dtype, shape):
    x = sample_noise(shape, [1, 2, 3]).to(dtype)
    output = toy(x, torch.full((3,), 400.0), torch.full((3, 1), 0.2))
    assert (output.shape, output.dtype) == (x.shape, dtype)


@pytest.mark.parametrize("toy", TOYS, ids=ids)
def test_rows_do_not_see_each_other(toy):
    x = sample_noise(toy.latent_shape, [1, 2, 3])
    times, embeds = torch.tensor([100.0, 500.0, 900.0]), toy.encode(["a", "b", ""])
    whole = toy(x, times, embeds)
    other = x.clone()
    other[1:] += 1.0
    assert torch.equal(toy(other, times, embeds)[0], whole[0])
    for row in range(3):
        alone = slice(row, row + 1)
        torch.testing.assert_close(toy(x[alone], times[alone], embeds[alone]), whole[alone])


@pytest.mark.parametrize("toy", TOYS, ids=ids)
def test_the_condition_matters_and_calls_repeat_bit_for_bit(toy):
    x, times = sample_noise(toy.latent_shape, [1, 2]), torch.full((2,), 600.0)
    first = toy(x, times, toy.encode(["a", "b"]))
    assert torch.equal(first, toy(x, times, toy.encode(["a", "b"])))
    assert not torch.equal(first, toy(x, times, toy.encode(["c", "d"])))


def test_calls_are_counted_and_predictions_are_not():
    toy = AffineFlow((2,))
    x, embeds = torch.zeros(1, 2), toy.encode([""])
    assert toy.calls == 0
    toy(x, torch.tensor([500.0]), embeds)
    toy(x, torch.tensor([500.0]), embeds)
    toy.predict(x, 0.5, embeds)
    assert toy.calls == 2


@pytest.mark.parametrize("toy", TOYS, ids=ids)
def test_toys_are_text_models(toy):
    assert isinstance(toy, TextModel)
    embeds = toy.encode(["a red circle", "a red circle", "a blue square", ""])
    assert embeds.shape == (4, 3)
    assert torch.equal(embeds[0], embeds[1])
    assert not torch.equal(embeds[0], embeds[2])
    assert torch.equal(embeds[3], torch.zeros(3))
    assert bool((embeds.abs() <= 1).all())


def test_fingerprints_tell_settings_apart():
    assert AffineFlow().fingerprint() == AffineFlow().fingerprint()
    assert AffineFlow().fingerprint() != AffineFlow(mean=0.4).fingerprint()
    assert GaussianMixtureFlow().fingerprint()["class"] == "GaussianMixtureFlow"


def test_the_epsilon_toy_inverts_the_times_of_its_solver():
    toy, solver = GaussianEpsilon(), DDIM()
    for sigma in (0.05, 0.7, 3.3, 12.0):
        time = torch.tensor([solver.time_of(sigma)], dtype=torch.float64)
        assert float(toy.sigma_of(time)) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AffineFlow(std=0.0), r"AffineFlow\(std=0.0\)"),
        (lambda: GaussianMixtureFlow(means=(1.0,)), "1 means, 3 stds and 1 weights"),
        (lambda: GaussianMixtureFlow(stds=(1.0, -1.0, 1.0)), "must be above 0"),
        (
            lambda: AffineFlow().predict(torch.zeros(2, 3, 4), 0.5, torch.zeros(1, 3)),
            r"condition \(1, 3\) for latents \(2, 3, 4\)",
        ),
    ],
)
def test_bad_settings_and_conditions_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
