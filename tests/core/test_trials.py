"""Trials: a policy runs the network on other latents or times, beside the trajectory, counted."""

from __future__ import annotations

import json

import pytest
import torch

from erta_framework import (
    CFG,
    Engine,
    FlowEuler,
    Interval,
    NoGuidance,
    Policy,
    Request,
    Reuse,
    SamplingLoop,
    SessionInfo,
    Traits,
    hookimpl,
)
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.testing import AffineFlow, GaussianMixtureFlow

STEPS = 5


class Tries(Policy):
    """Tries latents and times that the test chooses, and keeps what it got."""

    traits = Traits(requires=frozenset({"trial"}))
    branches: tuple[str, ...] = ("cond",)
    change: object = None
    found: list = None  # type: ignore[assignment]

    @hookimpl
    def decide(self, step, call):
        return Reuse("every other") if step.index % 2 else None

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        if call.branch in self.branches:
            x, time = self.change(step, call)
            self.found.append((x, time, step.interval.time, call.branch, call.trial(x, time)))
        return (yield)


def request(batch=2, steps=STEPS):
    toy = GaussianMixtureFlow((3, 4, 4))
    x = torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    cond, uncond = toy.encode(["a"] * batch + [""] * batch).chunk(2)
    return toy, Request(
        latents=x, cond=cond, uncond=uncond, schedule=FlowEuler().schedule(steps), request_id="r"
    )


def run(policy, guidance=None, **options):
    toy, asked = request(**options)
    return toy, asked, SamplingLoop(Engine([policy]), FlowEuler(), guidance).run(toy, asked)


def test_a_trial_is_the_network_on_those_latents_at_that_time() -> None:
    policy = Tries(change=lambda step, call: (2 * call.x[..., ::2], 123.0), found=[])
    toy, asked, _ = run(policy, NoGuidance())
    assert len(policy.found) == STEPS
    for x, time, _, _, output in policy.found:
        assert torch.equal(output, toy(x, torch.full((2,), time), asked.cond))
        assert output.shape == (2, 3, 4, 2)


def test_by_default_it_repeats_the_call() -> None:
    policy = Tries(change=lambda step, call: (None, None), found=[], branches=("uncond",))
    toy, asked, result = run(policy, CFG(scale=2.0))
    first = policy.found[0]
    assert torch.equal(first[-1], toy(asked.latents, torch.full((2,), first[2]), asked.uncond))
    assert [call.trials for call in result.trace.calls()] == [0, 1] * STEPS


def test_trials_are_counted_beside_the_network_calls_and_change_nothing() -> None:
    class Reuses(Policy):
        @hookimpl
        def decide(self, step):
            return Reuse("every other") if step.index % 2 else None

    policy = Tries(
        change=lambda step, call: (call.x + 1, None), found=[], branches=("cond", "uncond")
    )
    toy, _, result = run(policy, CFG(scale=2.0))
    plain_toy, _, plain = run(Reuses(), CFG(scale=2.0))
    assert torch.equal(result.sample, plain.sample)
    trace = result.trace
    assert trace.network_calls == plain.trace.network_calls == plain_toy.calls == 2 * 3
    assert (trace.trial_calls, trace.trial_samples) == (2 * STEPS, 2 * STEPS * 2)
    assert toy.calls == trace.network_calls + trace.trial_calls
    assert "10 trial calls beside them" in trace.summary()
    assert json.loads(trace.to_json())["trial_calls"] == 10
    assert plain.trace.trial_calls == 0
    assert "trial" not in plain.trace.summary()


def test_batched_guidance_tries_the_doubled_batch() -> None:
    policy = Tries(change=lambda step, call: (call.x, None), found=[], branches=("cond+uncond",))
    _, _, result = run(policy, CFG(scale=2.0, batched=True))
    assert (result.trace.trial_calls, result.trace.trial_samples) == (STEPS, 4 * STEPS)


def test_what_trials_cost_is_told_by_the_size_of_their_latents_and_in_seconds() -> None:
    policy = Tries(change=lambda step, call: (call.x[..., :1], None), found=[])
    trace = run(policy, NoGuidance())[2].trace
    assert (trace.trial_calls, trace.trial_share) == (STEPS, STEPS / 4)
    assert 0.0 < trace.trial_seconds < sum(call.seconds for call in trace.calls())
    assert "5 trial calls beside them (on the latents of 1.25 network calls)" in trace.summary()
    said = json.loads(trace.to_json())
    assert (said["trial_share"], said["trial_seconds"]) == (1.25, trace.trial_seconds)


def test_an_error_of_the_network_in_a_trial_stays_itself() -> None:
    class Full(AffineFlow):
        def __call__(self, x, timestep, embeds):
            if x.shape[-1] == 1:
                raise torch.OutOfMemoryError("full")
            return super().__call__(x, timestep, embeds)

    policy = Tries(change=lambda step, call: (call.x[..., :1], None), found=[])
    _, asked = request()
    loop = SamplingLoop(Engine([policy]), FlowEuler(), NoGuidance())
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        loop.run(Full((3, 4, 4)), asked)


def test_a_driver_without_trials_refuses_the_policy() -> None:
    info = SessionInfo(
        sigmas=(1.0, 0.0),
        times=(1000.0,),
        shape=(1, 2),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    with pytest.raises(CapabilityError, match="requires trial, which this driver does not offer"):
        Engine([Tries(change=None)]).session(info)

    class Undeclared(Policy):
        @hookimpl(wrapper=True)
        def forward(self, call):
            call.trial()
            return (yield)

    x = torch.ones(1, 2)
    with Engine([Undeclared()]).session(info) as session:
        session.begin(Interval(0, 1.0, 0.0, 1000.0, 0.0))
        with pytest.raises(CapabilityError, match=r"(?s)no trial:.*\"trial\".*branch 'cond'"):
            session.forward(x, lambda: x)


def test_part_of_a_batch_and_peers_have_no_trials() -> None:
    class Masked(Policy):
        traits = Traits(requires=frozenset({"trial"}), decides="sample")

        @hookimpl
        def decide(self, step):
            return Reuse("half", mask=[True, False])

        @hookimpl(wrapper=True)
        def forward(self, call):
            if call.rows is not None:
                call.trial()
            return (yield)

    with pytest.raises(CapabilityError, match="asked for part of a batch"):
        run(Masked(), NoGuidance())


def test_another_batch_is_refused() -> None:
    policy = Tries(change=lambda step, call: (call.x[:1], None), found=[])
    with pytest.raises(PolicyError, match=r"latents \(1, 3, 4, 4\) for a call on \(3, 3, 4, 4\)"):
        run(policy, NoGuidance(), batch=3)
