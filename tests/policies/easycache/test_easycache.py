"""EasyCache, arXiv 2507.02860."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Request, SamplingLoop
from erta_framework.errors import PolicyError
from erta_framework.testing import GaussianMixtureFlow
from erta_policies.easycache import EasyCache

STEPS = 40


def request(batch: int = 4, steps: int = STEPS, seed: int = 5) -> Request:
    toy = GaussianMixtureFlow((3, 2, 4, 4))
    generator = torch.Generator().manual_seed(seed)
    # samples of different difficulty: some start far from both components
    scale = torch.linspace(0.3, 3.0, batch).reshape(-1, 1, 1, 1, 1)
    return Request(
        latents=scale * torch.randn(batch, 3, 2, 4, 4, generator=generator),
        cond=toy.encode([f"prompt {k}" for k in range(batch)]),
        uncond=toy.encode([""] * batch),
        schedule=FlowEuler().schedule(steps),
    )


def only(whole: Request, k: int) -> Request:
    part = slice(k, k + 1)
    assert whole.uncond is not None
    return replace(
        whole, latents=whole.latents[part], cond=whole.cond[part], uncond=whole.uncond[part]
    )


def sample(policy: EasyCache, given: Request, guidance=None, network=None):
    loop = SamplingLoop(Engine([policy]), FlowEuler(), guidance or NoGuidance())
    return loop.run(network or GaussianMixtureFlow((3, 2, 4, 4)), given)


def literal(network, given: Request, policy: EasyCache) -> tuple[list[int], Tensor]:
    """The published algorithm for one sample and one branch, written down plainly.

    Source: the step list of arXiv 2507.02860 as in the repository's `easycache_generate.py`.
    """
    x, schedule = given.latents, given.schedule
    last_x = x_c = v_c = k = residual = None
    total, computed = 0.0, []
    for i in range(schedule.num_steps):
        told = torch.full((1,), schedule.times[i])
        forced = i < policy.warmup or i >= schedule.num_steps - policy.tail
        skip = False
        if forced:
            total = 0.0
        elif k is not None:
            total += k * float((x - last_x).abs().mean()) / float(v_c.abs().mean())
            skip = total < policy.threshold
            total = total if skip else 0.0
        last_x = x
        if skip:
            v = x + residual
        else:
            v = network(x, told, given.cond)
            if v_c is not None:
                k = float((v - v_c).abs().mean()) / float((x - x_c).abs().mean())
            residual, x_c, v_c = v - x, x, v
            computed.append(i)
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    return computed, x


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 1.0])
def test_it_is_the_published_algorithm(threshold):
    policy = EasyCache(threshold=threshold, warmup=5)
    for k in range(4):
        one = only(request(), k)
        expected, latents = literal(GaussianMixtureFlow((3, 2, 4, 4)), one, policy)
        got = sample(policy, one)
        assert got.trace.computed_steps == tuple(expected)
        assert torch.equal(got.sample, latents)
    if threshold == 0.0:
        assert len(expected) == STEPS


def test_samples_of_a_batch_do_not_depend_on_each_other():
    policy = EasyCache(threshold=0.1, warmup=5)
    for guidance in (NoGuidance(), CFG(scale=2.0)):
        together = sample(policy, request(), guidance)
        counts = set()
        for k in range(4):
            alone = sample(policy, only(request(), k), guidance)
            assert torch.equal(together.sample[k], alone.sample[0])
            assert together.trace.calls_for(k) == alone.trace.calls_for(0)
            counts.add(alone.trace.calls_for(0))
        assert len(counts) > 1  # the samples really differ in difficulty


def test_the_published_mean_over_the_batch_couples_the_samples():
    policy = EasyCache(threshold=0.1, warmup=5, per_sample=False)
    together = sample(policy, request())
    assert all(call.rows is None for call in together.trace.calls())
    calls = {sample(policy, only(request(), k)).trace.network_calls for k in range(4)}
    assert calls != {together.trace.network_calls}


def test_it_is_exact_on_a_linear_field():
    """With v = a x the rate is |a| at once, and the predicted change is the true one.

    The case in which the assumption of EasyCache (arXiv 2507.02860) holds: a rate that is constant.
    """
    rates, changes = [], []

    class Linear:
        def __call__(self, x, timestep, embeds):
            return -0.8 * x

    class Watching(EasyCache):
        def _measured(self, x, before, newest, older):
            moved, size, measured = super()._measured(x, before, newest, older)
            rates.extend(measured)
            true = (0.8 * (x - before)).abs().mean() / newest.output.abs().mean()
            changes.append((measured[0] * moved[0] / size[0], float(true)))
            return moved, size, measured

    sample(Watching(threshold=0.3, warmup=3), only(request(), 1), network=Linear())
    assert rates == pytest.approx([0.8] * len(rates), rel=1e-5)
    assert len(changes) == STEPS - 4
    for predicted, true in changes:
        assert predicted == pytest.approx(true, rel=1e-5)


def test_the_first_branch_decides_for_the_step():
    result = sample(EasyCache(threshold=0.2, warmup=5), only(request(), 1), CFG(scale=3.0))
    for step in result.trace.steps:
        assert len({call.computed for call in step.calls}) == 1
    assert 10 <= result.trace.network_calls < 2 * STEPS


def test_warmup_and_tail_are_always_computed():
    result = sample(EasyCache(threshold=math.inf, warmup=7, tail=3), only(request(), 0))
    assert result.trace.computed_steps == (*range(7), 37, 38, 39)
    short = sample(EasyCache(threshold=math.inf), only(request(steps=11), 0))
    assert short.trace.network_calls == 11  # ten warm-up steps are an absolute number


def test_latents_that_do_not_move_keep_the_earlier_rate_or_compute():
    class Still:
        calls = 0

        def __call__(self, x, timestep, embeds):
            return torch.zeros_like(x)

    result = sample(EasyCache(threshold=1.0, warmup=3), only(request(), 0), network=Still())
    # an output of zero has no relative change: nothing can be said, so it computes
    assert result.trace.network_calls == STEPS


@pytest.mark.parametrize(
    "options", [{"threshold": -0.1}, {"threshold": math.nan}, {"warmup": 0}, {"tail": -1}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(PolicyError, match="EasyCache"):
        EasyCache(**options)
