"""FreqCa: bands that add up, and what they are made of at reused steps."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework import Engine, NoGuidance, Policy, hookimpl
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Select
from erta_framework.testing import BlockFlow, toy_run
from erta_framework.testing._setup import FLOW
from erta_policies.at import At
from erta_policies.forecast import Forecaster, hermite
from erta_policies.freqca import BandCorrection, BandForecast, FreqCa, HighPass
from erta_policies.taylorseer import FORA, RefreshInterval
from module_plans import request, sample, visits


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


# ------------------------------------------------------------------------------- the bands
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("cutoff", [0.0, 0.1, 0.5, 1.0])
def test_the_token_band_is_the_released_split(tokens, cutoff):
    x = noise(2, tokens, 3)
    frequencies = torch.fft.fftfreq(tokens)
    low_mask = frequencies.abs() <= cutoff * frequencies.abs().max()
    low = torch.fft.ifft(torch.fft.fft(x, dim=1) * low_mask[None, :, None], dim=1).real
    assert torch.allclose(HighPass("fft", cutoff)(x, (1,)), x - low, atol=1e-10)


def cosine(x):
    """The orthonormal DCT-II of the last dimension, as it is defined."""
    n = x.shape[-1]
    rows = []
    for k in range(n):
        place = torch.arange(n, dtype=x.dtype)
        wave = torch.cos(torch.pi * (2 * place + 1) * k / (2 * n))
        rows.append((x * wave).sum(-1) * math.sqrt((1 if k == 0 else 2) / n))
    return torch.stack(rows, dim=-1)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (1, 2, 5, 8), (1, 2, 3, 4, 7)])
def test_the_grid_band_holds_the_cosines_above_the_cutoff(shape):
    x, cutoff = noise(*shape), 0.3
    dims = tuple(range(2, len(shape)))
    high = HighPass("dct", cutoff)(x, dims)

    def transform(values):
        return cosine(cosine(values).mT).mT

    height, width = shape[-2:]
    radius = torch.hypot(torch.arange(height)[:, None].double(), torch.arange(width).double())
    inside = radius <= cutoff * radius.max()
    expected = transform(x).masked_fill(inside, 0.0)
    assert torch.allclose(transform(high), expected, atol=1e-10)


@pytest.mark.parametrize("transform", ["fft", "dct"])
def test_bands_are_linear_and_apart(transform):
    band, x, y = HighPass(transform, 0.2), noise(1, 2, 6, 6), noise(1, 2, 6, 6) + 3
    dims = (2, 3)
    assert torch.allclose(band(2 * x + y, dims), 2 * band(x, dims) + band(y, dims))
    assert torch.allclose(band(band(x, dims), dims), band(x, dims), atol=1e-10)
    assert torch.allclose(band(torch.ones_like(x), dims), torch.zeros_like(x), atol=1e-10)


def test_narrow_types_are_kept():
    assert HighPass()(noise(1, 8, 2, dtype=torch.bfloat16), (1,)).dtype == torch.bfloat16


# ----------------------------------------------------------------------------- the forecast
def test_the_second_difference_hardly_counts_at_one_step():
    # scale 0.71: 1.0082 h, and 2 scale^4 h^2 - scale^2
    for ahead, expected in ((1, 0.0041), (2, 1.529), (3, 4.070)):
        newest, middle, oldest = hermite([2.0, 1.0, 0.0], 2.0 + ahead, 0.0, 0.71)
        assert oldest == pytest.approx(expected, abs=1e-3)
        assert middle == pytest.approx(-2 * expected - 1.0082 * ahead, abs=2e-3)
        assert newest + middle + oldest == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        (4, (0, 1, 2, *range(6, 50, 4))),
        (5, (0, 1, 2, *range(7, 50, 5))),
        (6, (0, 1, 2, *range(8, 50, 6))),
        (9, (0, 1, 2, 11, 20, 29, 38, 47)),
    ],
)
def test_golden_schedules_of_50_steps(interval, steps):
    assert FreqCa(interval=interval).plan(50).computed == steps
    assert len(steps) == {4: 14, 5: 12, 6: 10, 9: 8}[interval]


class Record(Policy):
    """Notes the outputs."""

    seen: dict

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        output = yield
        self.seen[step.index, call.branch] = (call.ran, output)
        return output


@pytest.mark.parametrize("transform", ["fft", "dct"])
def test_a_reused_output_has_the_bands_of_the_newest_and_of_the_forecast(transform):
    seen = {}
    toy_run([Record(seen=seen), FreqCa(interval=3, first=2, transform=transform, cutoff=0.4)])
    computed, reused, dims = [], 0, (2, 3)
    for index in range(10):
        ran, output = seen[index, "cond"]
        if ran:
            computed.insert(0, (float(index), output))
            continue
        used, reused = computed[:3], reused + 1
        weights = hermite([node for node, _ in used], float(index), 0.0, 0.71)
        forecast = sum(w * value for w, (_, value) in zip(weights, used, strict=True))
        dims = tuple(range(2, output.ndim))
        high, newest = HighPass(transform, 0.4), used[0][1]
        assert torch.allclose(high(output, dims), high(forecast, dims), atol=1e-4)
        low = output - high(output, dims)
        assert torch.allclose(low, newest - high(newest, dims), atol=1e-4)
    assert reused == 6


def test_order_0_and_a_low_band_of_everything_are_reuse():
    order0 = FreqCa(interval=3, first=1, order=0)
    fora = FORA(interval=3, counting="up")
    assert torch.equal(toy_run([order0]).sample, toy_run([fora]).sample)
    steps = RefreshInterval(interval=3, first=2)
    line = Forecaster(basis="hermite", order=2, over="index", scale=0.71)
    all_low = [steps, BandForecast(cutoff=1.0), line]
    reuse = [steps, Forecaster(order=0)]
    assert torch.allclose(toy_run(all_low).sample, toy_run(reuse).sample, atol=1e-5)


def test_interval_1_changes_nothing():
    assert torch.equal(toy_run([FreqCa(interval=1)]).sample, toy_run([]).sample)


def test_calls_are_those_of_the_schedule():
    toy = FLOW.toy()
    FLOW.run(Engine([FreqCa(budget={"calls": 5})]), FLOW.request(), toy)
    assert toy.calls == 2 * 5


# ---------------------------------------------------------------------------------- blocks
def test_level_blocks_mixes_the_bands_of_tokens():
    network, entered = BlockFlow(), []
    network.head.register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    counts = visits(network, "blocks.1.mlp.up")
    recipe = FreqCa(level="blocks", interval=3, first=2, cutoff=0.3)
    sample(recipe, network=network, given=request(steps=8), guidance=NoGuidance())
    computed = (0, 1, 4, 7)
    assert counts["blocks.1.mlp.up"] == len(computed)
    kept, high = [], HighPass("fft", 0.3)
    for index, hidden in enumerate(entered):
        if index in computed:
            kept.insert(0, (float(index), hidden))
            continue
        used = kept[:3]
        weights = hermite([node for node, _ in used], float(index), 0.0, 0.71)
        forecast = sum(w * value for w, (_, value) in zip(weights, used, strict=True))
        newest = used[0][1]
        assert torch.allclose(hidden, newest + high(forecast - newest, (1,)), atol=1e-4)


def test_it_corrects_any_place():
    at = At(
        sites=Select(kind=("mlp",)),
        when=RefreshInterval(interval=2, first=2),
        what=Forecaster(basis="taylor", over="index"),
        then=BandCorrection(cutoff=1.0),
    )
    reuse = At(sites=Select(kind=("mlp",)), when=RefreshInterval(interval=2, first=2))
    assert torch.allclose(sample(at).sample, sample(reuse).sample, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"level": "modules"}, "'output' or 'blocks'"),
        (
            {"level": "blocks", "transform": "dct"},
            "height and width",
        ),
        ({"level": "blocks", "budget": {"calls": 9}}, "budget of work"),
        ({"cutoff": 1.5}, "within 0 and 1"),
        ({"interval": 3, "budget": {"calls": 9}}, "give one of the two"),
    ],
)
def test_settings_are_refused(options, match):
    with pytest.raises(PolicyError, match=match):
        FreqCa(**options)


def test_a_grid_is_needed_for_cosines():
    from erta_framework import FlowEuler, Request, SamplingLoop

    flat = Request(
        latents=torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0)),
        cond=torch.zeros(1, 3),
        schedule=FlowEuler().schedule(4),
    )
    network = BlockFlow(latent_shape=(3, 8))
    loop = SamplingLoop(Engine([FreqCa(transform="dct")]), FlowEuler(), NoGuidance())
    with pytest.raises(CapabilityError, match="splits height and width"):
        loop.run(network, flat)


def test_configuration():
    one, other = build_policies(
        [{"freqca": {"interval": 9}}, {"freqca": {"level": "blocks", "budget": {"work": 12}}}]
    )
    assert (one.interval, other.budget.work) == (9, 12)
