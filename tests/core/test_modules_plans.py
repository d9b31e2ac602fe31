"""Plans that stay from call to call are not looked at again; one that changed is never missed."""

from __future__ import annotations

import pytest
import torch

from erta_framework import NoGuidance
from erta_framework.errors import PolicyError
from erta_framework.modules import KEEP, SKIP, Ask, Keep, ReuseKept
from erta_framework.testing import BlockFlow
from module_plans import STEPS, plan, sample, visits

PATHS = [f"blocks.{k}.attn.qkv" for k in range(3)]


def test_a_policy_may_fill_the_same_dictionary_again():
    mine = {}

    def make(step, call):
        mine.update(dict.fromkeys(call.sites, ReuseKept() if step.index % 2 else KEEP))
        return mine

    network = BlockFlow()
    counts = visits(network, *PATHS)
    found = sample(plan(make, "attention"), network=network, guidance=NoGuidance())
    fresh = sample(
        plan(
            lambda s, c: dict.fromkeys(c.sites, ReuseKept() if s.index % 2 else KEEP), "attention"
        ),
        guidance=NoGuidance(),
    )
    assert counts == dict.fromkeys(PATHS, STEPS // 2)
    assert torch.equal(found.sample, fresh.sample)


@pytest.mark.parametrize("moved", [0, 2])
def test_an_action_that_moves_to_another_place_is_seen(moved):
    newest = ReuseKept()

    def make(step, call):
        if step.index == 0:
            return dict.fromkeys(call.sites, KEEP)
        return {call.sites[moved if step.index > 2 else 1]: newest}

    network = BlockFlow()
    counts = visits(network, *PATHS)
    sample(plan(make, "attention"), network=network, guidance=NoGuidance())
    left = {1: 2, moved: STEPS - 3}
    assert counts == {path: STEPS - left.get(k, 0) for k, path in enumerate(PATHS)}


def test_a_plan_that_stays_is_refused_where_nothing_is_kept_any_more():
    newest = ReuseKept()

    def make(step, call):
        if step.index == 3:
            call.forget(call.sites[1])
        return dict.fromkeys(call.sites, newest if step.index else KEEP)

    with pytest.raises(PolicyError, match=r"blocks.1.attn in branch 'cond'.* at step 3"):
        sample(plan(make, "attention"))


def test_a_plan_that_stays_is_refused_where_something_else_is_kept():
    newest = ReuseKept()

    def make(step, call):
        if step.index in (0, 2):
            return dict.fromkeys(call.sites, Keep("residual") if step.index else KEEP)
        return dict.fromkeys(call.sites, newest)

    with pytest.raises(PolicyError, match=r"reuses the output of .* but its residual is kept"):
        sample(plan(make, "attention"), guidance=NoGuidance())


def test_what_an_asked_place_changed_ahead_holds_for_one_call_only():
    asked = Ask(lambda visit: visit.run())

    def ahead(visit):
        if visit.step.index == 2:
            visit.assign(visit.call.sites[1], ReuseKept())
        return visit.run()

    first = Ask(ahead)

    def make(step, call):
        one, two, three = call.sites
        return {one: first, two: KEEP, three: asked}

    network = BlockFlow()
    counts = visits(network, *PATHS)
    sample(plan(make, "attention"), network=network, guidance=NoGuidance())
    assert counts == dict(zip(PATHS, (STEPS, STEPS - 1, STEPS), strict=True))


def test_outcomes_are_those_of_the_call_where_the_plan_stays():
    newest = ReuseKept()

    def make(step, call):
        if step.index == 0:
            return dict.fromkeys(call.sites, KEEP)
        return {call.sites[0]: SKIP, call.sites[1]: newest} if step.index > 3 else {}

    found = sample(plan(make, "block"), guidance=NoGuidance())
    seen = [step.calls[0].sites["block"] for step in found.trace.steps]
    assert seen == [(3, 0, 0)] * 4 + [(1, 1, 1)] * (STEPS - 4)
    works = [step.calls[0].share for step in found.trace.steps]
    assert works[:4] == [1.0] * 4
    assert works[4] == works[5] < 1.0


def test_what_other_places_keep_is_not_told():
    def make(step, call):
        others.append(call.sites[0])
        return {}

    def ask(step, call):
        call.kept(others[0])
        return {}

    others = []
    with pytest.raises(PolicyError, match="which it does not select"):
        sample(plan(make, "attention"), plan(ask, "mlp"))
