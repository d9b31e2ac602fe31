"""SeaCache, arXiv 2602.18993."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, Engine, NoGuidance, Request, SessionInfo
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.sampling.solvers import DDIM
from erta_framework.testing import GaussianMixtureFlow
from erta_framework.testing._setup import FLOW
from erta_policies.adapters import WarmUp
from erta_policies.seacache import SeaCache, SeaCacheRule, apply_sea_filter, axis_gain, mixing_at
from erta_policies.shared import read_mixing

STEPS = 30
SHAPE = (3, 4, 6, 5)
TOY = partial(GaussianMixtureFlow, SHAPE)
SETUP = replace(FLOW, toy=TOY, guidance=NoGuidance(), num_steps=STEPS)


def one(k: int) -> Request:
    """Four single samples, which take different numbers of calls."""
    return SETUP.request(seed=k, batch=1)


def sample(policies, given, network=None, **changes):
    engine = Engine(policies if isinstance(policies, list) else [policies])
    return replace(SETUP, **changes).run(engine, given, network)


def info(**changes) -> SessionInfo:
    facts = {
        "sigmas": (1.0, 0.5, 0.0),
        "times": (1000.0, 500.0),
        "shape": (1, 3, 4, 4),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return SessionInfo(**{**facts, **changes})


# ------------------------------------------------------------------------------ the filter
def plain_filter(x: Tensor, a: float, b: float, power: float) -> Tensor:
    """The Wiener filter written down plainly for one sample `[C, T, H, W]`."""
    gains = []
    for size in x.shape[1:]:
        f = torch.fft.fftfreq(size, dtype=torch.float64).abs()
        clean = 1.0 / (f**power + 1e-16)
        gains.append(a * clean / (a**2 * clean + b**2 + 1e-16))
    gain = torch.einsum("t,h,w->thw", *gains)
    spectrum = torch.fft.fftn(x.double(), dim=(1, 2, 3)) * gain / gain.mean()
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.5, 0.1, 0.0])
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_it_is_the_wiener_filter_of_the_grid(sigma, power):
    x = torch.randn(2, 3, 4, 7, 6, generator=torch.Generator().manual_seed(0))
    signal, noise = mixing_at(sigma, "flow")
    got = apply_sea_filter(x, signal, noise, power)
    for k in range(2):
        expected = plain_filter(x[k], signal, noise, power).float()
        torch.testing.assert_close(got[k], expected, rtol=5e-4, atol=5e-4)


def test_the_gain_minimises_the_error_of_the_clean_part():
    """At every frequency: E|c - g (a c + b n)|^2 is least at the gain, up to its mean."""
    a, b, power = 0.7, 0.3, 2.0
    gain = axis_gain(16, a, b, power).double()
    f = torch.fft.fftfreq(16, dtype=torch.float64).abs()[1:]
    scale = gain[1:] / (a / (a**2 + b**2 * f**power))
    assert float(scale.std()) < 1e-6  # one factor for all: the normalisation

    def error(g):
        clean = f**-power
        return (1 - g * a) ** 2 * clean + (g * b) ** 2

    best = gain[1:] / scale
    for step in (1e-3, -1e-3):
        assert (error(best + step) > error(best)).all()
    assert float(gain.mean()) == pytest.approx(1.0)


def test_noise_is_filtered_while_there_is_much_and_passes_when_there_is_little():
    x = torch.randn(1, 1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    kept = []
    for sigma in (0.999, 0.5, 0.01):
        filtered = apply_sea_filter(x, 1 - sigma, sigma)
        spectrum = torch.fft.fft2(filtered).abs() / torch.fft.fft2(x).abs()
        kept.append(float(spectrum[..., 16, 16] / spectrum[..., 1, 1]))  # finest against coarse
    assert kept[0] < 0.1
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] == pytest.approx(1.0, abs=0.01)


def test_channels_may_lie_behind_the_frames_and_real_transforms_suffice():
    x = torch.randn(2, 3, 4, 7, 5, generator=torch.Generator().manual_seed(0))
    swapped = apply_sea_filter(x.transpose(1, 2), 0.6, 0.4, channel_dim=2).transpose(1, 2)
    torch.testing.assert_close(swapped, apply_sea_filter(x, 0.6, 0.4))


def test_how_latents_are_mixed_is_read_from_the_schedule():
    assert read_mixing(info()) == "flow"
    assert read_mixing(info(sigmas=(14.6, 1.0, 0.0), times=(999.0, 400.0))) == "variance_preserving"
    levels = info(sigmas=(0.99, 0.6, 0.0), times=(999.0, 300.0))
    assert read_mixing(levels) == "variance_preserving"
    assert read_mixing(replace(levels, capabilities=frozenset({"velocity"}))) == "flow"
    assert read_mixing(info(capabilities=frozenset({"epsilon"}))) == "variance_preserving"
    for sigma in (0.05, 0.7, 9.0):
        signal, noise = mixing_at(sigma, "variance_preserving")
        assert noise / signal == pytest.approx(sigma)
        assert math.hypot(signal, noise) == pytest.approx(1.0)


# --------------------------------------------------------------------------- the algorithm
def literal(network, given: Request, policy: SeaCache) -> tuple[list[int], Tensor]:
    """The gate and the forecast for one sample and one branch, written down plainly."""
    x, schedule, count = given.latents, given.schedule, given.schedule.num_steps
    before, total, cached, history, computed = None, 0.0, 0, [], []
    for i in range(count):
        sigma = min(max(schedule.sigmas[i], 1e-6), 1 - 1e-6)
        now = plain_filter(x[0], 1 - sigma, sigma, policy.power)
        forced = i < policy.first or i >= count - policy.last or before is None
        forced |= policy.max_consecutive is not None and cached >= policy.max_consecutive
        if before is not None:
            total += float((now - before).abs().mean() / before.abs().mean())
        skip = not forced and total < policy.threshold
        before = now
        if skip:
            residual = history[-1][1]
            if policy.order and len(history) > 1:
                (j, older), (k, newer) = history[-2:]
                residual = newer + (newer - older) * (i - k) / (k - j)
            v, cached = x + residual, cached + 1
        else:
            told = torch.full((1,), schedule.times[i])
            v = network(x, told, given.cond)
            history.append((i, v - x))
            computed.append(i)
            total, cached = 0.0, 0
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return computed, x


@pytest.mark.parametrize(
    "policy",
    [
        SeaCache(),
        SeaCache(threshold=0.1),
        SeaCache(threshold=0.6, max_consecutive=None, order=0),
        SeaCache(threshold=1.0, max_consecutive=5, first=4, last=3, power=2.0),
    ],
    ids=["default", "careful", "released", "limits"],
)
def test_it_is_the_method_written_down_plainly(policy):
    lengths = set()
    for k in range(4):
        given = one(k)
        expected, latents = literal(GaussianMixtureFlow(SHAPE), given, policy)
        got = sample(policy, given)
        assert got.trace.computed_steps == tuple(expected)
        torch.testing.assert_close(got.sample, latents, rtol=1e-4, atol=1e-4)
        lengths.add(len(expected))
    assert min(lengths) < STEPS


def test_the_mean_over_the_batch_couples_the_samples():
    policy = SeaCache(threshold=0.2, per_sample=False)
    together = sample(policy, SETUP.request(batch=4))
    assert all(call.rows is None for call in together.trace.calls())
    calls = {sample(policy, one(k)).trace.network_calls for k in range(4)}
    assert calls != {together.trace.network_calls}


def test_one_branch_decides_for_the_step_and_the_latents_are_filtered_once():
    filtered = []

    class Counting(SeaCacheRule):
        def observe_signal(self, step, call):
            filtered.append((step.index, call.branch))
            return super().observe_signal(step, call)

    trace = sample(Counting(threshold=0.3), one(1), guidance=CFG(scale=3.0)).trace
    assert filtered == [(i, "cond") for i in range(STEPS)]
    for step in trace.steps:
        assert len({call.computed for call in step.calls}) == 1
    assert 2 < trace.network_calls < 2 * STEPS


def test_a_threshold_of_nothing_computes_every_step():
    plain = sample([], SETUP.request(batch=4))
    nothing = sample(SeaCache(threshold=0.0), SETUP.request(batch=4))
    assert torch.equal(nothing.sample, plain.sample)
    assert nothing.trace.network_calls == STEPS


def test_limits_hold_and_forced_steps_start_the_sum_anew():
    given = one(0)
    most = sample(SeaCache(threshold=math.inf, max_consecutive=3, first=2, last=2), given).trace
    assert most.computed_steps == (*range(2), *range(5, 28, 4), 28, 29)
    free = sample(SeaCache(threshold=math.inf, max_consecutive=None), given).trace
    assert free.computed_steps == (0, 29)
    warm = sample([WarmUp(steps=9), SeaCacheRule(threshold=0.3)], given).trace
    assert set(range(9)) <= set(warm.computed_steps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    given = one(0)
    result = sample(SeaCache(), replace(given, latents=given.latents.to(dtype)))
    assert result.sample.dtype is dtype
    assert 2 <= result.trace.network_calls < STEPS


def test_ddim_runs_as_variance_preserving():
    given = replace(SETUP.request(batch=4), schedule=DDIM().schedule(12))
    trace = sample(SeaCache(threshold=0.6), given, solver=DDIM()).trace
    assert 2 * 4 <= trace.network_samples < 12 * 4


# -------------------------------------------------------------------------------- refusals
def test_settings_out_of_range_are_refused():
    for wrong in ({"threshold": -1.0}, {"threshold": math.nan}, {"power": 0.0}):
        with pytest.raises(PolicyError, match="of SeaCache is"):
            SeaCacheRule(**wrong)
    with pytest.raises(PolicyError, match="the order of SeaCache is 2"):
        SeaCache(order=2)
    with pytest.raises(PolicyError, match="first=-1"):
        SeaCache(first=-1)


def test_packed_tokens_and_sigmas_that_are_no_flows_are_refused_before_the_first_step():
    engine = Engine([SeaCacheRule(mixing="flow")])
    packed = info(shape=(1, 16, 64), channel_dim=2)
    with pytest.raises(CapabilityError, match="have none"), engine.session(packed):
        pass
    wide = info(sigmas=(14.6, 1.0, 0.0), times=(999.0, 400.0))
    with pytest.raises(CapabilityError, match=r"above 1.*variance_pres"), engine.session(wide):
        pass


def test_what_stands_in_can_be_left_out_or_replaced():
    assert [part.name for part in SeaCache(predictor=False).parts()][-1] == "sea_cache_rule"
    other = WarmUp(steps=1)
    assert SeaCache(predictor=other, first=0, last=0, max_consecutive=None).parts()[1] is other
