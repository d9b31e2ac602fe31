"""LFCache, the step-level part of PreciseCache, arXiv 2603.00976."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from erta_framework import CFG, Engine, NoGuidance, Request, SessionInfo
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.testing import GaussianMixtureFlow
from erta_framework.testing._setup import FLOW
from erta_policies.adapters import WarmUp
from erta_policies.lfcache import LFCache, low_frequencies, shrink, shrink_sizes
from erta_policies.lfcache._lowpass import spectrum_norms

STEPS = 30
SHAPE = (3, 4, 12, 16)
TOY = partial(GaussianMixtureFlow, SHAPE)
SETUP = replace(FLOW, toy=TOY, guidance=NoGuidance(), num_steps=STEPS)


def one(k: int) -> Request:
    """Four single samples, which take different numbers of calls."""
    return SETUP.request(seed=k, batch=1)


def sample(policies, given, network=None, **changes):
    engine = Engine(policies if isinstance(policies, list) else [policies])
    return replace(SETUP, **changes).run(engine, given, network)


# ------------------------------------------------------------------------ low frequencies
def low_passed(x: Tensor) -> Tensor:
    """The low-pass written down plainly: centre shift, disc, and the way back."""
    height, width = x.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    distance = (rows - height // 2) ** 2 + (columns - width // 2) ** 2
    kept = spectrum * (distance <= (min(height, width) / 5) ** 2)
    return torch.fft.ifft2(torch.fft.ifftshift(kept, dim=(-2, -1))).real


@pytest.mark.parametrize("size", [(10, 10), (22, 40), (15, 11)])
def test_the_norm_of_the_coefficients_is_that_of_the_low_passed_difference(size):
    a, b = torch.randn(2, 2, 3, 2, *size, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = spectrum_norms(low_passed(a) - low_passed(b))
    torch.testing.assert_close(spectrum_norms(low_frequencies(a) - low_frequencies(b)), expected)


def test_a_disc_holds_an_eighth_of_the_bins():
    share = low_frequencies(torch.ones(1, 1, 100, 100)).shape[-1] / 100**2
    assert share == pytest.approx(torch.pi / 25, rel=0.01)


def test_identical_inputs_differ_by_nothing_and_a_checkerboard_is_not_seen():
    a, b = torch.randn(2, 2, 3, 2, 20, 24, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert spectrum_norms(low_frequencies(a) - low_frequencies(a.clone())).tolist() == [0.0, 0.0]
    board = (-1.0) ** (torch.arange(20)[:, None] + torch.arange(24)[None])
    plain = spectrum_norms(low_frequencies(a) - low_frequencies(b))
    changed = spectrum_norms(low_frequencies(a + board) - low_frequencies(b))
    assert ((changed - plain).abs() / plain).max() < 1e-6
    assert (
        spectrum_norms(a + board - b) / spectrum_norms(a - b) - 1
    ).abs().max() > 0.1  # it would be seen


def test_channels_may_lie_behind_the_frames():
    x = torch.randn(2, 3, 4, 20, 24, generator=torch.Generator().manual_seed(0))
    swapped = x.transpose(1, 2)
    assert torch.equal(shrink(swapped, (2, 5, 6), 2), shrink(x, (2, 5, 6)).transpose(1, 2))
    torch.testing.assert_close(
        spectrum_norms(low_frequencies(swapped, 2)), spectrum_norms(low_frequencies(x))
    )


def test_latents_get_smaller_to_whole_patches():
    assert shrink_sizes((21, 90, 160)) == (10, 22, 40)
    assert shrink_sizes((1, 6, 3)) == (1, 2, 2)  # never below one patch
    assert shrink_sizes((1, 1)) == (1, 1)  # nor larger than it was
    x = torch.randn(1, 2, 4, 12, 16)
    expected = adaptive_avg_pool3d(x, (2, 2, 4))
    assert torch.equal(shrink(x, (2, 2, 4)), expected)
    assert torch.equal(shrink(x[:, :, 0], (2, 4)), adaptive_avg_pool2d(x[:, :, 0], (2, 4)))
    assert torch.equal(shrink(x, (2, 6, 8), down="nearest"), x[:, :, ::2, ::2, ::2])


# --------------------------------------------------------------------------- the algorithm
def literal(network, given: Request, policy: LFCache) -> tuple[list[int], Tensor]:
    """The steps of the method for one sample and one branch, written down plainly."""
    x, schedule, last = given.latents, given.schedule, given.schedule.num_steps - 1
    before = full = cached = None
    total = largest = 0.0
    computed = []
    for i in range(schedule.num_steps):
        told = torch.full((1,), schedule.times[i])
        skip = False
        if i < last:
            low = one_bin_passed(network(adaptive_avg_pool3d(x, (2, 2, 4)), told, given.cond))
            if before is not None:
                reference = before if policy.reference == "adjacent" else full
                change = float(torch.linalg.vector_norm(low - reference))
                largest = max(largest, change)
                total = total + change if policy.reference == "adjacent" else change
                skip = total < policy.alpha * largest
            before = low
        if skip:
            v = x + cached
        else:
            v = network(x, told, given.cond)
            cached, total, full = v - x, 0.0, before
            computed.append(i)
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return computed, x


@pytest.mark.parametrize("reference", ["adjacent", "last_full"])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.7, 1.0])
def test_it_is_the_method_written_down_plainly(alpha, reference):
    policy = LFCache(alpha=alpha, reference=reference)
    lengths = set()
    for k in range(4):
        given = one(k)
        expected, latents = literal(GaussianMixtureFlow(SHAPE), given, policy)
        got = sample(policy, given)
        assert got.trace.computed_steps == tuple(expected)
        torch.testing.assert_close(got.sample, latents)
        assert got.trace.trial_calls == STEPS - 1
        assert {0, 1, STEPS - 1} <= set(expected)
        lengths.add(len(expected))
    assert min(lengths) < STEPS  # something was reused


def one_bin_passed(x: Tensor) -> Tensor:
    """The low-pass of a trial of 2 x 4, whose disc has the least radius, one bin."""
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height)[:, None]
    columns = torch.fft.fftfreq(width, 1 / width)[None]
    return torch.fft.ifft2(torch.fft.fft2(x) * (rows**2 + columns**2 <= 1.0)).real


def test_samples_of_a_batch_decide_apart():
    trace = sample(LFCache(alpha=0.5), SETUP.request(batch=4)).trace
    assert len({trace.calls_for(k) for k in range(4)}) > 1
    whole = sample(LFCache(alpha=0.5, per_sample=False), SETUP.request(batch=4))
    assert all(call.rows is None for call in whole.trace.calls())
    assert trace.network_samples < 4 * whole.trace.network_calls < 4 * STEPS


def test_one_branch_tries_and_decides_for_the_step():
    toy = GaussianMixtureFlow(SHAPE)
    trace = sample(LFCache(), one(0), toy, guidance=CFG(scale=3.0)).trace
    for step in trace.steps:
        assert len({call.computed for call in step.calls}) == 1
        assert [call.trials for call in step.calls] == [int(step.index < STEPS - 1), 0]
    assert toy.calls == trace.network_calls + trace.trial_calls
    assert trace.network_calls < 2 * STEPS
    assert trace.trial_share == pytest.approx((STEPS - 1) * 2 * 2 * 4 / (4 * 12 * 16))


def test_alpha_of_nothing_and_a_constant_network_compute_every_step():
    plain = sample([], SETUP.request(batch=4))
    nothing = sample(LFCache(alpha=0.0), SETUP.request(batch=4))
    assert torch.equal(nothing.sample, plain.sample)
    assert nothing.trace.network_calls == STEPS

    def constant(x, timestep, embeds):
        return torch.ones_like(x)

    still = sample(LFCache(alpha=1.0), SETUP.request(batch=4), network=constant)
    assert still.trace.network_calls == STEPS  # the largest difference is 0


def test_steps_computed_by_another_policy_start_the_sum_anew():
    given = one(0)
    result = sample([WarmUp(steps=10), LFCache(alpha=1.0)], given)
    assert set(range(10)) <= set(result.trace.computed_steps)
    assert result.trace.trial_calls == STEPS - 1
    assert len(result.trace.computed_steps) < STEPS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    given = one(0)
    result = sample(LFCache(alpha=1.0), replace(given, latents=given.latents.to(dtype)))
    assert result.sample.dtype is dtype
    assert 3 <= result.trace.network_calls < STEPS


# ------------------------------------------------------------------------------- refusals
def test_settings_out_of_range_are_refused():
    with pytest.raises(PolicyError, match=r"alpha of LFCache is 1\.5"):
        LFCache(alpha=1.5)
    with pytest.raises(PolicyError, match="three factors"):
        LFCache(factors=(4, 4))  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="three factors"):
        LFCache(multiple=0)


def test_packed_tokens_are_refused_before_the_first_step():
    info = SessionInfo(
        sigmas=(1.0, 0.0),
        times=(1000.0,),
        shape=(1, 16, 64),
        dtype=torch.float32,
        device=torch.device("cpu"),
        channel_dim=2,
        capabilities=frozenset({"trial", "trial:resized"}),
    )
    with pytest.raises(CapabilityError, match="which have none"), Engine([LFCache()]).session(info):
        pass
