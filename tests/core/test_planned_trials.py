"""Trials with a plan of places: kept outputs are read, nothing is kept, and it is counted."""

from __future__ import annotations

import pytest
import torch

from erta_framework import FunctionNetwork, Policy, Seam, Site, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import KEEP, ReuseKept, Select
from erta_framework.session import PLANNED, TRIAL
from erta_framework.testing import BlockFlow
from module_plans import STEPS, plan, request, sample, visits

REUSE = ReuseKept()


def reuse_all(parts):
    return dict.fromkeys(parts.sites, REUSE)


def reuse_attention(parts):
    return {p: REUSE if p.kind == "attention" else KEEP for p in parts.sites}


class Tries(Policy):
    """Keeps every place, and tries plans at each step but the first."""

    plans: tuple = ()
    found: list = None  # type: ignore[assignment]
    latents: object = None
    selects = (Select(kind=("attention", "mlp")),)
    traits = Traits(seams=frozenset({Seam.MODULE}), requires=frozenset({TRIAL, PLANNED}))

    @hookimpl
    def assign(self, step, call):
        ages = {call.age(place) for place in call.sites}
        assert ages == {1 if step.index else None}  # what a trial keeps would be of age 0
        return dict.fromkeys(call.sites, KEEP)

    @hookimpl(wrapper=True)
    def forward(self, step, call):
        if step.index:
            x = self.latents(call.x) if self.latents else None
            self.found.append([call.trial(x, plan=plan) for plan in self.plans])
        return (yield)


def test_a_trial_gives_what_its_plan_would_give_and_leaves_the_run_alone():
    found = []
    plain = sample(plan(lambda _, call: dict.fromkeys(call.sites, KEEP), "attention", "mlp"))
    result = sample(Tries(plans=(reuse_all, reuse_attention, lambda _: {}), found=found))
    assert torch.equal(result.sample, plain.sample)
    assert result.trace.network_calls == plain.trace.network_calls == 2 * STEPS
    assert result.trace.trial_calls == 3 * 2 * (STEPS - 1)
    for make, place in ((reuse_all, 0), (reuse_attention, 1)):
        answers = []

        class Watch(Policy):
            """Remembers the outputs."""

            answers: list = None  # type: ignore[assignment]

            @hookimpl(wrapper=True)
            def forward(self, step, call):
                output = yield
                self.answers.append(output)
                return output

        def carry_out(step, call, make=make):
            return make(call) if step.index == 1 else dict.fromkeys(call.sites, KEEP)

        sample(Watch(answers=answers), plan(carry_out, "attention", "mlp"))
        for branch in (0, 1):
            assert torch.equal(found[branch][place], answers[2 + branch])
    assert not torch.equal(found[0][0], found[0][1])


def test_a_plan_without_actions_runs_everything():
    found = []
    network = BlockFlow()
    sample(Tries(plans=(None, lambda _: {}, lambda _: None), found=found), network=network)
    for bare, empty, none in found:
        assert torch.equal(bare, empty)
        assert torch.equal(bare, none)


def test_modules_that_a_trial_reuses_do_not_run():
    network, path = BlockFlow(), "blocks.0.attn.qkv"
    counts = visits(network, path)
    sample(Tries(plans=(reuse_all,), found=[]), network=network)
    assert counts[path] == 2 * STEPS


def test_nothing_can_be_reused_before_something_is_kept():
    class Early(Tries):
        """Tries at the first step too."""

        @hookimpl(wrapper=True)
        def forward(self, step, call):
            call.trial(plan=reuse_all)
            return (yield)

    with pytest.raises(PolicyError, match="reuse"):
        sample(Early())


def test_latents_of_another_shape_are_refused():
    with pytest.raises(CapabilityError, match="with a plan on latents"):
        sample(Tries(plans=(reuse_all,), found=[], latents=lambda x: x[..., :2]))


def test_a_driver_without_gates_refuses_plans():
    class Asks(Policy):
        """Has no places, and tries a plan all the same."""

        traits = Traits(requires=frozenset({TRIAL}))

        @hookimpl(wrapper=True)
        def forward(self, call):
            call.trial(plan=reuse_all)
            return (yield)

    with pytest.raises(CapabilityError, match="no gates on places"):
        sample(Asks())


def test_a_loop_by_hand_offers_no_plans():
    from erta_framework import Engine, Interval, SessionInfo

    x = request().latents
    info = SessionInfo((1.0, 0.0), (999.0,), tuple(x.shape), x.dtype, x.device)
    with Engine([]).session(info) as session:
        session.begin(Interval(0, 1.0, 0.0, 999.0, 0.0))
        call = session.ask(Site("model", "cond"), x, FunctionNetwork(lambda: x))
        with pytest.raises(CapabilityError, match="a FunctionNetwork has no gates"):
            call.trial(plan=reuse_all)
