"""Adapters change the decisions of what is listed after them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erta_framework import CFG, Engine, Policy, Reuse, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.masked import MaskedLoop
from erta_framework.sampling.solvers import FlowEuler
from erta_framework.session import Compute
from erta_framework.testing import GaussianMixtureFlow, TokenToy, ToySetup, toy_run
from erta_policies.adapters import (
    Budget,
    EveryBranchAgrees,
    LastStep,
    MaxConsecutive,
    OnlyBetween,
    WarmUp,
)
from erta_policies.dkvcache import DKVCacheDecode
from erta_policies.ertacache import SkipPolicy


class Always(Policy):
    traits = Traits(static=True)

    @hookimpl
    def decide(self):
        return Reuse("always")


class Rows(Policy):
    """Sample k wants to compute at the steps listed for it."""

    traits = Traits(static=True, decides="sample")
    steps: tuple[tuple[int, ...], ...]

    @hookimpl
    def decide(self, step):
        return Reuse("listed", mask=[step.index not in own for own in self.steps])


def computed(*policies: Policy) -> tuple[int, ...]:
    return toy_run(policies).trace.computed_steps


def of(trace, sample: int) -> list[int]:
    return [c.index for c in trace.calls() if c.branch == "cond" and c.computed_for(sample)]


def test_warm_up():
    assert computed(WarmUp(steps=4), Always()) == (0, 1, 2, 3)
    assert computed(WarmUp(fraction=0.29), Always()) == (0, 1)
    assert WarmUp(fraction=0.29).count(100) == 29
    assert WarmUp(steps=1, fraction=0.2).count(30) == 7
    assert computed(WarmUp(steps=0), Always()) == (0,)


def test_last_step():
    assert computed(LastStep(), Always()) == (0, 9)
    assert computed(LastStep(steps=3), Always()) == (0, 7, 8, 9)


def test_only_between_is_in_sigma():
    sigmas = FlowEuler().schedule(10).sigmas
    expected = (0, *(i for i in range(1, 10) if not 0.3 <= sigmas[i] <= 0.8))
    assert computed(OnlyBetween(high=0.8, low=0.3), Always()) == expected
    assert 1 < len(expected) < 9


@given(st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_max_consecutive_bounds_every_run(most):
    found = computed(MaxConsecutive(steps=most), Always())
    assert found == tuple(range(0, 10, most + 1))


@given(st.integers(1, 12), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_a_budget_is_never_exceeded(calls, every):
    found = computed(Budget(calls=calls), SkipPolicy(every=every + 1))
    unbounded = computed(SkipPolicy(every=every + 1))
    assert found == unbounded[:calls]


def test_the_listed_order_says_who_overrules_whom():
    assert computed(Budget(calls=2), LastStep(), Always()) == (0, 9)
    assert computed(Budget(calls=2), WarmUp(steps=4), Always()) == (0, 1)
    assert computed(WarmUp(steps=4), Budget(calls=2), Always()) == (0, 1, 2, 3)


def test_adapters_keep_masks_apart_by_sample():
    steps = ((0, 4), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
    trace = toy_run([MaxConsecutive(steps=2), Rows(steps=steps)]).trace
    assert of(trace, 0) == [0, 3, 4, 7]
    assert of(trace, 1) == list(range(10))
    trace = toy_run([Budget(calls=3), Rows(steps=steps)]).trace
    assert of(trace, 0) == [0, 4]
    assert of(trace, 1) == [0, 1, 2]
    trace = toy_run([WarmUp(steps=3), LastStep(), Rows(steps=((0,), (0, 5)))]).trace
    assert of(trace, 0) == [0, 1, 2, 9]
    assert of(trace, 1) == [0, 1, 2, 5, 9]


class ByBranch(Policy):
    """Reuses while the residual of the asked branch is small."""

    limit: float

    @hookimpl
    def decide(self, call):
        size = float(call.history[0].residual.norm())
        call.state_of(self, list).append(call.branch)
        return Reuse("small") if size < self.limit else Compute("large")


def test_every_branch_agrees_asks_each_with_its_own_history():
    setup = ToySetup(
        toy=lambda: GaussianMixtureFlow((1, 2)),
        solver=FlowEuler(),
        guidance=CFG(scale=1.5),
        num_steps=6,
    )
    request = setup.request(seed=2)
    sizes: dict[str, list[float]] = {}

    class Sizes(Policy):
        @hookimpl(wrapper=True)
        def forward(self, call):
            output = yield
            if call.ran:
                sizes.setdefault(call.branch, []).append(float((output - call.x).norm()))
            return output

    setup.run(Engine([Sizes()]), request)
    cond, uncond = sizes["cond"][0], sizes["uncond"][0]
    limit = (cond + uncond) / 2
    small, large = ("cond", "uncond") if cond < uncond else ("uncond", "cond")
    alone = setup.run(Engine([ByBranch(limit=limit)]), request).trace
    both = setup.run(Engine([EveryBranchAgrees(policy=ByBranch(limit=limit))]), request).trace
    # the conditional branch alone decides by its own residual
    first = alone.steps[1].calls[0]
    assert first.computed == (small == "uncond")
    assert [call.computed for call in both.steps[1].calls] == [True, True]
    assert both.steps[1].calls[0].reason == f"{large}: large"
    generous = EveryBranchAgrees(policy=ByBranch(limit=1e9))
    assert setup.run(Engine([generous]), request).trace.computed_steps == (0,)


def test_every_branch_agrees_takes_no_rule_on_tokens():
    with pytest.raises(PolicyError, match=r"DKVCacheDecode\(.*decides for tokens.*list it alone"):
        EveryBranchAgrees(policy=DKVCacheDecode())
    both = EveryBranchAgrees(policy=MaxConsecutive(steps=2))
    with pytest.raises(CapabilityError, match="decides for latents, but MaskedLoop samples tokens"):
        MaskedLoop(Engine([both])).check(TokenToy())


def test_every_branch_agrees_combines_masks():
    class Opposite(Policy):
        traits = Traits(decides="sample")

        @hookimpl
        def decide(self, call):
            first = call.branch == "cond"
            return Reuse("own", mask=[first, True])

    trace = toy_run([EveryBranchAgrees(policy=Opposite())]).trace
    assert of(trace, 0) == list(range(10))
    assert of(trace, 1) == [0]


def test_settings_out_of_range_are_refused():
    for make, words in (
        (lambda: WarmUp(), "WarmUp takes steps"),
        (lambda: WarmUp(steps=-1), "-1 steps"),
        (lambda: WarmUp(fraction=1.5), "fraction of WarmUp is 1.5"),
        (lambda: LastStep(steps=0), "LastStep has 0"),
        (lambda: MaxConsecutive(steps=-1), "MaxConsecutive has -1"),
        (lambda: OnlyBetween(high=0.1, low=0.5), "from 0.5 to 0.1"),
        (lambda: Budget(calls=0), "budget is 0 calls"),
        (lambda: EveryBranchAgrees(policy=toy_policy()), "several policies"),
        (lambda: EveryBranchAgrees(policy=Silent()), "does not decide"),
    ):
        with pytest.raises(PolicyError, match=words):
            make()


class Silent(Policy):
    @hookimpl
    def pre_step(self):
        pass


def toy_policy() -> Policy:
    class Two(Policy):
        def parts(self):
            return (Always(), Silent())

    return Two()


def test_nothing_allowed_to_skip_is_bit_identical():
    plain = toy_run()
    for adapter in (WarmUp(fraction=1.0), MaxConsecutive(steps=0), OnlyBetween(high=0.0)):
        assert torch.equal(toy_run([adapter, Always()]).sample, plain.sample)
