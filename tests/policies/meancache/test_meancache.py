"""MeanCache: the released rule on guided velocities, the paper's edges, and Adams-Bashforth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from erta_bench.overhead import SyncCounter
from erta_framework import CFG, Engine, FlowEuler, NoGuidance, Request, SamplingLoop
from erta_framework.errors import CapabilityError, InputError, PolicyError
from erta_framework.sampling.solvers import DDIM, FlowAdamsBashforth2
from erta_framework.testing import AlternateSteps, GaussianMixtureFlow, toy_profile, toy_run
from erta_framework.testing._setup import FLOW
from erta_policies.easycache import EasyCache
from erta_policies.forecast import Forecaster
from erta_policies.meancache import (
    AverageVelocity,
    EdgeVelocity,
    MeanCache,
    MeanCacheProfiler,
    MeanCacheSchedule,
    look_up_path,
)

SHAPE = (3, 2, 4, 4)
LONG = dataclasses.replace(FLOW, num_steps=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled(CFG):
    """Guidance that gives the result the norm of the conditional output, as Qwen-Image's does."""

    def combine(self, outputs):
        guided = CFG.combine(self, outputs)
        return guided * (outputs["cond"].norm() / guided.norm())


def request_of(steps, guidance, sigmas=None):
    toy = GaussianMixtureFlow(SHAPE)
    latents = torch.randn(
        2, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    return Request(
        latents=latents,
        cond=toy.encode(["a", "b"]),
        uncond=toy.encode(["", ""]),
        schedule=FlowEuler().schedule(steps, sigmas),
    )


def sampled(policies, steps=50, guidance=None, solver=None):
    guidance = guidance or NoGuidance()
    loop = SamplingLoop(Engine(policies), solver or FlowEuler(), guidance)
    return loop.run(GaussianMixtureFlow(SHAPE), request_of(steps, guidance))


@torch.no_grad()
def literal(path, guidance, steps=50):
    """The released loop on guided velocities, written out: lists of every step, no framework."""
    request, network = request_of(steps, guidance), GaussianMixtureFlow(SHAPE)
    fresh, spans = set(path.fresh), path.by_step(steps)
    x, schedule = request.latents, request.schedule
    before, after, start, end, velocities = [], [], [], [], []
    for i in range(steps):
        if i in fresh:
            outputs = {}
            for branch in guidance.branches(request.cond, request.uncond, i, steps):
                time = torch.full((2 * branch.copies,), schedule.times[i])
                outputs[branch.name] = network(branch.expand(x), time, branch.condition)
            v = guidance.combine(outputs)
        else:
            n = min(max(1, spans[i - 1]), len(velocities))
            window = end[-1] - start[-n]
            mean = (after[-1] - before[-n]) / window
            bend = (velocities[-n] - mean) / window
            v = velocities[-1] - bend * (schedule.sigmas[i + 1] - schedule.sigmas[i])
        before.append(x)
        start.append(schedule.sigmas[i])
        end.append(schedule.sigmas[i + 1])
        velocities.append(v)
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
        after.append(x)
    return x


GUIDANCES = [NoGuidance(), CFG(scale=3.0), CFG(scale=3.0, batched=True), CFG(scale=-0.5)]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=repr)
@pytest.mark.parametrize(("model", "calls"), [("qwen-image", 17), ("z-image", 13)])
def test_variant_a_in_each_branch_is_the_released_rule_on_the_guided_velocity(
    model, calls, guidance
):
    """UnicomAI/MeanCache, Mc_qwenimage.py: its loop on guided velocities, without the rescaling.

    The weights of guidance sum to 1, so the latents' share in the rule is kept.
    """
    result = sampled([MeanCache(model=model, calls=calls)], guidance=guidance)
    expected = literal(look_up_path(model, calls), guidance)
    torch.testing.assert_close(result.sample, expected, rtol=1e-9, atol=1e-9)
    reuse = sampled(
        [MeanCacheSchedule(model=model, calls=calls), Forecaster(order=0)], guidance=guidance
    )
    assert (reuse.sample - expected).abs().max() > 1e-3


def test_variant_a_in_each_branch_is_another_rule_under_rescaled_guidance():
    guidance = Rescaled(scale=3.0)
    result = sampled([MeanCache(model="qwen-image", calls=10)], guidance=guidance)
    expected = literal(look_up_path("qwen-image", 10), guidance)
    assert (result.sample - expected).abs().max() > 1e-2


def test_a_window_of_one_step_is_plain_reuse():
    path = (0, 1, 2, 5, 9)
    one = toy_run([MeanCache(fresh=path, spans=(1, 1, 1, 1))])
    reuse = toy_run([MeanCacheSchedule(fresh=path), Forecaster(order=0)])
    assert torch.equal(one.sample, reuse.sample)
    assert one.trace.computed_steps == path


@pytest.mark.parametrize("variant", ["A", "B"])
def test_every_step_fresh_is_the_plain_run_bit_for_bit(variant):
    policy = MeanCache(fresh=tuple(range(10)), spans=(0,) * 9, variant=variant)
    assert torch.equal(toy_run([policy]).sample, toy_run().sample)


def test_the_window_measures_the_slope_of_a_linear_velocity():
    """v = a + b * sigma along the way: over K equal Euler steps the rule sees b/2 * (K - 1)/K.

    By hand: u is the mean of the K velocities, so u - v_r = b * h * (K - 1)/2 over a way of K * h.
    """

    class Linear:
        def __call__(self, x, timestep, embeds):
            sigma = timestep.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / 1000
            return (0.7 + 1.3 * sigma).expand_as(x)

    sigmas = [1.0 - k / 8 for k in range(9)]
    request = Request(
        latents=torch.zeros(1, 2, dtype=torch.float64),
        cond=torch.zeros(1, 1),
        schedule=FlowEuler().schedule(8, sigmas),
    )
    policies = [MeanCacheSchedule(fresh=(0, 1, 2, 3, 7)), AverageVelocity(span=4)]
    loop = SamplingLoop(Engine(policies), FlowEuler(), NoGuidance())
    result = loop.run(Linear(), request)
    h, b = -1 / 8, 1.3
    velocities = [0.7 + b * s for s in sigmas]
    # step 4 is the first reused one; its window holds the four computed velocities
    expected = list(velocities)
    expected[4] = velocities[3] + h * (b / 2 * 3 / 4)
    x = [0.0]
    for i in range(8):
        if i in (5, 6):
            mean = (x[i] - x[i - 4]) / (4 * h)
            expected[i] = expected[i - 1] + h * (mean - expected[i - 4]) / (4 * h)
        x.append(x[-1] + h * expected[i])
    assert result.trace.computed_steps == (0, 1, 2, 3, 7)
    torch.testing.assert_close(
        result.sample, torch.full((1, 2), x[-1], dtype=torch.float64), rtol=1e-7, atol=1e-7
    )


def test_variant_b_is_plain_reuse_on_a_path_that_begins_sparse():
    """Our finding about the paper's edges: the correction of an uncorrected edge is 0."""
    path, spans = (0, 2, 4, 6, 9), (2, 2, 2, 2)
    edges = sampled([MeanCache(fresh=path, spans=spans, variant="B")], steps=10)
    reuse = sampled([MeanCacheSchedule(fresh=path), Forecaster(order=0)], steps=10)
    torch.testing.assert_close(edges.sample, reuse.sample, rtol=1e-9, atol=1e-9)
    sliding = sampled([MeanCache(fresh=path, spans=spans)], steps=10)
    assert (sliding.sample - reuse.sample).abs().max() > 1e-2


def test_variant_b_corrects_on_a_path_that_begins_dense():
    table = {"model": "qwen-image", "calls": 25}
    full = sampled([]).sample
    edges = sampled([MeanCache(**table, variant="B")])
    reuse = sampled([MeanCacheSchedule(**table), Forecaster(order=0)])
    assert (edges.sample - full).norm() < 0.95 * (reuse.sample - full).norm()


def test_one_edge_of_variant_b_by_hand():
    """The edge from 2 to 5 with K = 2: v_2 + (s_5 - s_2) * (u(0..2) - v_0) / (s_2 - s_0)."""
    given = []

    class Seen(CFG):
        def combine(self, outputs):
            guided = CFG.combine(self, outputs)
            given.append(guided)
            return guided

    guidance = Seen(scale=2.0)
    sampled([MeanCache(fresh=(0, 1, 2, 5, 9), spans=(0, 0, 2, 0), variant="B")], 10, guidance)
    edges, given[:] = list(given), []
    sampled([MeanCacheSchedule(fresh=(0, 1, 2, 5, 9)), Forecaster(order=0)], 10, guidance)
    plain, s = list(given), FlowEuler().schedule(10).sigmas
    mean = ((s[1] - s[0]) * plain[0] + (s[2] - s[1]) * plain[1]) / (s[2] - s[0])
    expected = plain[2] + (s[5] - s[2]) * (mean - plain[0]) / (s[2] - s[0])
    for index in (2, 3, 4):
        torch.testing.assert_close(edges[index], expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(edges[1], plain[1])


def test_variant_c_is_adams_bashforth_2_on_the_fresh_steps():
    path = look_up_path("qwen-image", 17)
    result = sampled([MeanCache(model="qwen-image", calls=17, variant="C")])
    nominal = FlowEuler().schedule(50).sigmas
    solver = FlowAdamsBashforth2()
    request = request_of(17, None, [*(nominal[i] for i in path.fresh), nominal[-1]])
    plain = SamplingLoop(Engine([]), solver, NoGuidance()).run(GaussianMixtureFlow(SHAPE), request)
    torch.testing.assert_close(result.sample, plain.sample, rtol=1e-9, atol=1e-9)


def test_on_a_dense_beginning_every_variant_beats_reuse():
    """Our ordering on this toy, not a published one."""
    full = sampled([]).sample

    def error(policies):
        return float((sampled(policies).sample - full).norm())

    reuse = error([MeanCacheSchedule(model="qwen-image", calls=17), Forecaster(order=0)])
    for variant in ("A", "C"):
        assert error([MeanCache(model="qwen-image", calls=17, variant=variant)]) < reuse


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_a_static_path_reads_nothing_back(variant):
    spans = None if variant == "C" else (0, 0, 2, 2)
    policy = MeanCache(fresh=(0, 1, 2, 5, 9), spans=spans, variant=variant)
    toy_run([policy])
    with SyncCounter() as bare:
        toy_run()
    with SyncCounter() as counter:
        toy_run([policy])
    assert dict(counter.counts) == dict(bare.counts)


def test_samples_that_decide_apart_are_predicted_apart():
    """A batch under a per-sample rule gives what each of its samples gives alone."""
    policies = [EasyCache(threshold=0.3, warmup=2), AverageVelocity(span=3)]
    request = FLOW.request(batch=3)
    whole = FLOW.run(Engine(policies), request)
    rows = [call.rows for call in whole.trace.calls() if call.rows]
    assert rows, "the samples never differed"
    for k in range(3):
        one = dataclasses.replace(
            request,
            latents=request.latents[k : k + 1],
            cond=request.cond[k : k + 1],
            uncond=request.uncond[k : k + 1],
        )
        alone = FLOW.run(Engine(policies), one).sample
        torch.testing.assert_close(whole.sample[k : k + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_window_works_over_any_skip_rule():
    result = toy_run([AlternateSteps(), AverageVelocity(span=3)])
    assert result.trace.computed_steps == (0, 2, 4, 6, 8, 9)
    assert not torch.equal(result.sample, toy_run([AlternateSteps(), Forecaster(order=0)]).sample)


def test_what_cannot_be_is_refused():
    cases = [
        (lambda: MeanCache(), "give exactly one of model"),
        (lambda: MeanCache(model="z-image", profile="x", calls=13), "got model and profile; give"),
        (lambda: MeanCache(model="flux", calls=10), r"no released table for 'flux'.*calibrat"),
        (lambda: MeanCache(model="qwen-image", calls=12), "have 10, 17, 25 calls of 50 steps"),
        (lambda: MeanCache(model="qwen-image"), "calls=<network calls> or a budget goes with"),
        (lambda: MeanCache(fresh=(0, 1, 9)), "need a span for each edge"),
        (lambda: MeanCache(fresh=(0, 1, 9), spans=(0, 2), variant="C"), "no use for them"),
        (lambda: MeanCache(fresh=(0, 1, 9), spans=(0,)), "2 in all"),
        (lambda: MeanCache(fresh=(1, 9), spans=(0,)), "must rise from step 0"),
        (lambda: MeanCache(profile="x", calls=5, gamma=0.0), "gamma=0.0"),
        (lambda: AverageVelocity(span=0), "must be at least 1"),
        (lambda: EdgeVelocity(), "needs schedule="),
        (lambda: MeanCacheProfiler(longest=0), "at least 1"),
    ]
    for build, said in cases:
        with pytest.raises(PolicyError, match=f"(?s){said}"):
            build()
    with pytest.raises(InputError, match=r"are for 50 steps, this schedule has 10; calibrate"):
        toy_run([MeanCache(model="qwen-image", calls=10)])
    with pytest.raises(InputError, match=r"ends at step 7, the schedule of 10 steps at 9"):
        toy_run([MeanCache(fresh=(0, 1, 7), spans=(0, 2))])
    for solver in (DDIM(), FlowAdamsBashforth2()):
        with pytest.raises(CapabilityError, match=r"AverageVelocity.*requires"):
            SamplingLoop(Engine([AverageVelocity()]), solver, NoGuidance())


def test_a_profile_is_used_through_the_recipe():
    profile = toy_profile(MeanCacheProfiler())
    policy = MeanCache(profile=profile, calls=5)
    assert isinstance(policy.calibrator(), MeanCacheProfiler)
    assert MeanCache(model="z-image", calls=13).calibrator() is None
    result = toy_run([policy])
    assert len(result.trace.computed_steps) == 5
    assert result.trace.network_calls == 10


def test_the_command_line_finds_the_profiler_by_the_name_of_the_recipe():
    from erta_framework.cli._calibrate import make_blank_policy

    for name in ("meancache", "meancache_schedule"):
        assert isinstance(make_blank_policy(name).calibrator(), MeanCacheProfiler)
