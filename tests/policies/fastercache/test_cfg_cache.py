"""CFG-Cache in the own loop: each branch a call of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from erta_framework import (
    CFG,
    FlowEuler,
    NoGuidance,
    Policy,
    Request,
    Reuse,
    Traits,
    hookimpl,
)
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.adapters import LastStep
from erta_policies.ertacache import SkipPolicy
from erta_policies.fastercache import AttentionExtrapolation, CfgCache, FasterCache, keep_low
from module_plans import request, sample

SCALE = 2.0


class Spied(BlockFlow):
    """Notes of every network call whether it had a condition."""

    def __init__(self):
        super().__init__((3, 8, 12))
        self.seen = []

    def __call__(self, x, timestep, cond):
        self.seen.append(bool(cond.any()))
        return super().__call__(x, timestep, cond)


def given(steps=12):
    draw = torch.Generator().manual_seed(3)
    return Request(
        latents=torch.randn(2, 3, 8, 12, generator=draw),
        cond=torch.rand(2, 3, generator=draw),
        uncond=torch.zeros(2, 3),
        schedule=FlowEuler().schedule(steps),
    )


def run(*policies, steps=12, guidance=None):
    network = Spied()
    found = sample(*policies, network=network, given=given(steps), guidance=guidance)
    return found, network


def ran(found):
    """Steps at which each branch ran."""
    steps = {"cond": [], "uncond": []}
    for call in found.trace.calls():
        if call.computed:
            steps[call.branch].append(call.index)
    return steps


def by_hand(policy, steps=12):
    """The loop written out: full steps keep the difference, the others add it."""
    network, asked = BlockFlow((3, 8, 12)), given(steps)
    plan, x = policy.plan_branches(steps), asked.latents
    low = high = torch.zeros(1)
    for index in range(steps):
        interval = asked.schedule.interval(index)
        time = torch.full((2,), interval.time)
        cond = network(x, time, asked.cond)
        if plan.skips[index]:
            low = low * plan.weights[index][0]
            high = high * plan.weights[index][1]
            uncond = cond + low + high
        else:
            uncond = network(x, time, asked.uncond)
            delta = uncond - cond
            low = keep_low(delta)
            high = delta - low
        x = x + (interval.end - interval.start) * (uncond + SCALE * (cond - uncond))
    return x


@pytest.mark.parametrize(
    "policy",
    [
        CfgCache(),
        CfgCache(period=3, start=0.0, low=1.3, high=1.2, low_until=0.6, high_from=0.3),
        CfgCache(period=2, bands=False),
    ],
)
def test_it_is_the_loop_written_out(policy):
    found, _ = run(policy, guidance=CFG(scale=SCALE))
    torch.testing.assert_close(found.sample, by_hand(policy), rtol=1e-5, atol=1e-5)


def test_only_the_conditional_branch_runs_at_skip_steps():
    policy = CfgCache(period=4, start=0.25)
    found, network = run(policy)
    plan = policy.plan_branches(12)
    full = [k for k in range(12) if not plan.skips[k]]
    assert full == [0, 1, 2, 4, 8, 11]
    assert ran(found) == {"cond": list(range(12)), "uncond": full}
    assert (network.seen.count(True), network.seen.count(False)) == (12, 6)
    assert found.trace.network_calls == 18
    skipped = next(c for c in found.trace.steps[3].calls if c.branch == "uncond")
    assert (skipped.reason, skipped.source) == ("cfg_cache, difference of step 2", 2)


@pytest.mark.parametrize("policy", [CfgCache(period=1), FasterCache(period=1, interval=1)])
def test_with_full_steps_only_no_bit_changes(policy):
    assert torch.equal(run(policy)[0].sample, run()[0].sample)


def test_weights_of_one_are_no_bands():
    ones = CfgCache(period=3, low=1.0, high=1.0)
    assert torch.equal(run(ones)[0].sample, run(CfgCache(period=3, bands=False))[0].sample)


def test_no_transform_runs_at_skip_steps(monkeypatch):
    count = [0]
    own = torch.fft.fft2

    def fft2(*args, **kwargs):
        count[0] += 1
        return own(*args, **kwargs)

    monkeypatch.setattr(torch.fft, "fft2", fft2)
    policy = CfgCache(period=3, start=0.25, high_from=1.0)
    run(policy)
    assert count[0] == sum(policy.plan_branches(12).splits[k] for k in (2, 3, 6, 9))
    count[0] = 0
    run(CfgCache(period=3, bands=False))
    assert count[0] == 0


def test_a_step_rule_beside_it_reuses_whole_steps():
    found, _ = run(CfgCache(period=4, start=0.0), SkipPolicy(steps=(0, 1, 2, 5, 6, 9, 10, 11)))
    # full ones are 0, 4, 8, 11; 5 and 9 make up for 4 and 8, which the rule leaves out
    assert ran(found) == {"cond": [0, 1, 2, 5, 6, 9, 10, 11], "uncond": [0, 5, 9, 11]}


def test_a_limit_listed_before_it_has_the_last_word():
    found, _ = run(LastStep(steps=3), CfgCache(period=50, start=0.0), AlternateSteps())
    steps = ran(found)
    assert steps["uncond"] == [0, 9, 10, 11]


class CondOnly(Policy):
    """Reuses the conditional branch alone at one step."""

    traits = Traits(decides="branch", static=True)

    @hookimpl
    def decide(self, step, call):
        alone = step.index == 5 and call.branch == "cond"
        return Reuse("alone", "branch") if alone else None


def test_a_reused_conditional_branch_is_no_ground_for_the_other():
    found, _ = run(CfgCache(period=50, start=0.0), CondOnly())
    assert ran(found)["uncond"] == [0, 5, 11]
    # and the difference of such a step is none of a step that computed both
    source = [c.source for c in found.trace.steps[6].calls]
    reason = found.trace.steps[6].calls[1].reason
    assert source[1] == 5
    assert reason == "cfg_cache, difference of step 0"


def test_where_guidance_has_one_branch_it_is_refused():
    with pytest.raises(
        CapabilityError, match=r"requires two_branches.*use guidance of two branches"
    ):
        run(CfgCache(), guidance=NoGuidance())
    with pytest.raises(CapabilityError, match="the branches of this run are"):
        run(CfgCache(true_cfg=True), guidance=NoGuidance())


def test_branches_in_the_other_order_are_refused():
    with pytest.raises(PolicyError, match=r"needs branch 'uncond' to be called before 'cond'"):
        run(CfgCache(cond="uncond", uncond="cond"))
    with pytest.raises(PolicyError, match="name two branches"):
        CfgCache(cond="a", uncond="a")


def test_latents_without_height_and_width_need_no_bands():
    asked = request()
    flat = replace(asked, latents=asked.latents.flatten(2))
    network = BlockFlow((3, 32))
    with pytest.raises(CapabilityError, match=r"do not end in them.*set bands=False"):
        sample(CfgCache(), network=network, given=flat)
    found = sample(CfgCache(bands=False), network=network, given=flat)
    assert found.trace.network_calls < 12
    assert found.sample.isfinite().all()


def test_nothing_is_left_for_the_next_request():
    policies = [CfgCache(period=3), AttentionExtrapolation()]
    first = run(*policies)[0].sample
    assert torch.equal(run(*policies)[0].sample, first)


def test_policies_are_made_from_a_configuration():
    cfg, attention = build_policies(
        [
            {"cfg_cache": {"period": 4, "bands": False}},
            {
                "attention_extrapolation": {
                    "interval": 3,
                    "sites": {"kind": ["attention"], "depth": "1:"},
                    "beside": {"cfg_cache": {"period": 4}},
                }
            },
        ]
    )
    assert (cfg.period, cfg.bands) == (4, False)
    assert attention.sites == Select(kind=("attention",), depth="1:")
    assert attention.beside.plan_branches(12).skips == cfg.plan_branches(12).skips
    (recipe,) = build_policies([{"fastercache": {"preset": "latte"}}])
    assert [part.preset for part in recipe.parts()] == ["latte", "latte"]


def test_a_run_whose_branches_are_on_several_ranks_is_refused():
    class Divided(CFG):
        divided = True

    with pytest.raises(CapabilityError, match="other ranks evaluate some of the branches"):
        run(CfgCache(), guidance=Divided(scale=SCALE))
