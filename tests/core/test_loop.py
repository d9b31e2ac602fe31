"""The loop against plain hand-written loops: bit-identical when nothing is skipped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import (
    CFG,
    DDIM,
    Compute,
    Engine,
    FlowAdamsBashforth2,
    FlowEuler,
    NoGuidance,
    Policy,
    Request,
    Reuse,
    SamplingLoop,
    hookimpl,
)
from erta_framework.errors import InputError, ProtocolError

SOLVERS = [FlowEuler(), FlowEuler(shift=1.0), FlowAdamsBashforth2(), DDIM()]
GUIDANCE = [
    NoGuidance(),
    CFG(scale=2.5),
    CFG(scale=2.5, batched=True),
    CFG(scale=2.5, start=0.25, stop=0.75),
    CFG(scale=2.5, start=0.25, stop=0.75, batched=True),
]


class Watcher(Policy):
    """Takes part in every hook and changes nothing."""

    @hookimpl
    def pre_step(self, step):
        assert step.index >= 0

    @hookimpl
    def decide(self, step):
        return Compute("always")

    @hookimpl(wrapper=True)
    def forward(self, step):
        return (yield)

    @hookimpl
    def adjust_interval(self, step):
        return None

    @hookimpl
    def post_step(self, sample):
        assert sample.isfinite().all()


def by_hand(net, x, cond, uncond, solver, guidance, steps, first=0, sigmas=None):
    """The plain loop: written out, with no engine, session or history."""
    schedule = solver.schedule(steps, sigmas)
    sigma, times, total = schedule.sigmas, schedule.times, schedule.num_steps
    before = None
    for i in range(first, total):
        t = torch.full((x.shape[0],), times[i])
        guided = isinstance(guidance, CFG) and (guidance.start * total <= i < guidance.stop * total)
        if not guided:
            out = net(x, t, cond)
        elif guidance.batched:
            both = net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, uncond]))
            c, u = both.chunk(2)
            out = u + guidance.scale * (c - u)
        else:
            c, u = net(x, t, cond), net(x, t, uncond)
            out = u + guidance.scale * (c - u)
        h = sigma[i + 1] - sigma[i]
        if isinstance(solver, DDIM):
            x = x * math.sqrt(1 + sigma[i] ** 2) + h * out
            x = x / math.sqrt(1 + sigma[i + 1] ** 2)
        elif isinstance(solver, FlowAdamsBashforth2) and before is not None:
            v, h_before = before
            x = x + h * (out + (h / h_before / 2) * (out - v))
        else:
            x = x + h * out
        before = (out, h)
    return x


@pytest.mark.parametrize("policies", [[], [Watcher()]], ids=["no policy", "watcher"])
@pytest.mark.parametrize("guidance", GUIDANCE, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("batch", [1, 3])
def test_bit_identical_to_a_plain_loop(run, new_net, make_noise, solver, guidance, policies, batch):
    if policies and isinstance(solver, FlowAdamsBashforth2):
        policies = []
    done = run(policies, solver=solver, guidance=guidance, batch=batch)
    plain = new_net()
    cond = torch.linspace(-1.0, 1.0, batch)[:, None]
    uncond = torch.linspace(0.5, 0.25, batch)[:, None]
    expected = by_hand(plain, make_noise(batch), cond, uncond, solver, guidance, 8)
    assert torch.equal(done.sample, expected)
    assert done.network.calls == plain.calls == done.trace.network_calls
    assert done.network.times == plain.times


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("first", [0, 3, 7])
def test_start_index_of_img2img(run, new_net, make_noise, solver, first):
    done = run(solver=solver, first=first)
    plain = new_net()
    cond = torch.linspace(-1.0, 1.0, 2)[:, None]
    expected = by_hand(plain, make_noise(), cond, None, solver, NoGuidance(), 8, first=first)
    assert torch.equal(done.sample, expected)
    assert done.trace.network_calls == 8 - first
    assert [step.index for step in done.trace.steps] == list(range(first, 8))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_user_sigmas(run, new_net, make_noise, solver):
    sigmas = [0.9, 0.7, 0.35, 0.05]
    done = run(solver=solver, sigmas=sigmas)
    cond = torch.linspace(-1.0, 1.0, 2)[:, None]
    expected = by_hand(new_net(), make_noise(), cond, None, solver, NoGuidance(), 0, sigmas=sigmas)
    assert torch.equal(done.sample, expected)
    assert [step.start for step in done.trace.steps] == sigmas
    assert done.trace.steps[-1].end == 0.0


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_batched_guidance_agrees_with_separate_branches(run, solver):
    separate = run(solver=solver, guidance=CFG(scale=2.5))
    batched = run(solver=solver, guidance=CFG(scale=2.5, batched=True))
    assert separate.network.calls == 16
    assert batched.network.calls == batched.trace.network_calls == 8
    torch.testing.assert_close(separate.sample, batched.sample)


@pytest.mark.parametrize(
    ("start", "stop", "guided"),
    [(0.0, 1.0, 10), (0.2, 0.7, 5), (0.0, 0.0, 0), (0.25, 0.5, 2), (0.5, 1.0, 5)],
)
@pytest.mark.parametrize("batched", [False, True])
def test_guidance_interval_counts_calls_of_each_branch(run, start, stop, guided, batched):
    guidance = CFG(scale=2.0, start=start, stop=stop, batched=batched)
    done = run(steps=10, guidance=guidance)
    by_branch: dict[str, int] = {}
    for call in done.trace.calls():
        by_branch[call.branch] = by_branch.get(call.branch, 0) + 1
    if batched:
        wanted = {"cond+uncond": guided, "cond": 10 - guided}
    else:
        wanted = {"cond": 10, "uncond": guided}
    assert by_branch == {name: count for name, count in wanted.items() if count}
    assert done.network.calls == sum(wanted.values())


def test_reuse_adds_the_newest_residual(run, new_net, make_noise, reuse_on):
    done = run([reuse_on(steps=(1, 2, 4))], steps=5)
    net, x, residual = new_net(), make_noise(), None
    schedule = FlowEuler().schedule(5)
    cond = torch.linspace(-1.0, 1.0, 2)[:, None]
    for i in range(5):
        if i in (1, 2, 4):
            v = x + residual
        else:
            v = net(x, torch.full((2,), schedule.times[i]), cond)
            residual = v - x
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * v
    assert torch.equal(done.sample, x)
    assert done.network.calls == net.calls == 2
    assert [call.source for call in done.trace.calls()] == [None, 0, 0, None, 3]


@given(
    decisions=st.lists(st.booleans(), min_size=1, max_size=12),
    guidance=st.sampled_from(GUIDANCE[:3]),
)
@settings(max_examples=40, deadline=None)
def test_network_calls_are_exactly_the_decisions(decisions, guidance):
    calls = [0]

    def network(x, t, c):
        calls[0] += 1
        return 0.5 * x

    class Listed(Policy):
        plan: tuple[bool, ...] = ()

        @hookimpl
        def decide(self, step):
            return Reuse("no") if not self.plan[step.index] else Compute("yes")

    schedule = FlowEuler().schedule(len(decisions))
    one = torch.ones(1, 1)
    request = Request(latents=torch.ones(1, 2, 2), cond=one, uncond=one, schedule=schedule)
    loop = SamplingLoop(Engine([Listed(plan=tuple(decisions))]), FlowEuler(), guidance)
    trace = loop.run(network, request).trace
    computed = [True, *decisions[1:]]  # nothing can be reused at step 0
    branches = len(guidance.names)
    assert calls[0] == trace.network_calls == sum(computed) * branches
    assert trace.reused_calls == (len(decisions) - sum(computed)) * branches
    assert trace.computed_steps == tuple(i for i, yes in enumerate(computed) if yes)


def test_batch_of_three_equals_three_batches_of_one(run, new_net, make_noise, reuse_on):
    latents = make_noise(3)

    def network(x, t, c):
        return new_net()(x, t, torch.full((x.shape[0], 1), 0.5))

    whole = run([reuse_on(steps=(2, 3))], batch=3, latents=latents, network=network)
    for k in range(3):
        one = run([reuse_on(steps=(2, 3))], batch=1, latents=latents[k : k + 1], network=network)
        assert torch.equal(one.sample[0], whole.sample[k])


def test_latents_are_not_written_into(run, make_noise, reuse_on):
    latents = make_noise()
    kept = latents.clone()
    run([reuse_on(steps=(1,))], latents=latents, guidance=CFG(batched=True))
    assert torch.equal(latents, kept)


def test_output_of_another_dtype_comes_back_in_that_of_the_latents(run, make_noise):
    done = run(network=lambda x, t, c: x.double() * 0.5)
    assert done.sample.dtype == torch.float32


@pytest.mark.parametrize(
    "latents",
    [torch.zeros(0, 2, 3), torch.zeros(3), torch.zeros(2, 2, 3, dtype=torch.int64)],
    ids=["empty batch", "one dimension", "integers"],
)
def test_impossible_latents(run, latents):
    with pytest.raises(InputError, match=r"latents must be floating \[B, C, \.\.\.\]"):
        run(latents=latents)


def test_condition_of_another_batch(run, make_noise):
    with pytest.raises(InputError, match="latents have batch 3, a condition has batch 2"):
        run(latents=make_noise(3), batch=2)


@pytest.mark.parametrize("first", [-1, 8, 100])
def test_start_outside_the_schedule(run, first):
    with pytest.raises(InputError, match=f"first step is {first}, outside the 8 steps"):
        run(first=first)


def test_network_of_another_shape(run):
    with pytest.raises(ProtocolError, match=r"returned \(2, 1, 3, 3\) for latents of \(2, 2, 3, 3"):
        run(network=lambda x, t, c: x[:, :1])


def test_network_that_returns_a_tuple(run):
    with pytest.raises(ProtocolError, match=r"returned tuple .* branch 'cond'"):
        run(network=lambda x, t, c: (x,))


def test_observer_sees_every_step_once(run):
    seen = []
    done = run(observe=seen.append)
    assert seen == done.trace.steps
    assert [step.index for step in seen] == list(range(8))


def test_no_gradient_is_tracked(run, make_noise):
    weight = torch.ones(1, requires_grad=True)
    done = run(network=lambda x, t, c: weight * x)
    assert not done.sample.requires_grad
