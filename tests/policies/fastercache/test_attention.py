"""Extrapolated attention in the own loop, beside the scripts' arithmetic written out."""

from __future__ import annotations

import pytest
import torch

from erta_framework import CFG, FlowEuler, NoGuidance, Request
from erta_framework.testing import BlockFlow
from erta_policies.ertacache import SkipPolicy
from erta_policies.fastercache import AttentionExtrapolation, CfgCache, FasterCache
from module_plans import sample, visits

SCALE = 2.0


def given(steps):
    draw = torch.Generator().manual_seed(5)
    return Request(
        latents=torch.randn(2, 3, 8, 12, generator=draw),
        cond=torch.rand(2, 3, generator=draw),
        uncond=torch.zeros(2, 3),
        schedule=FlowEuler().schedule(steps),
    )


class Scripted:
    """An attention as the scripts have it: its last two outputs, and none of a reused step."""

    def __init__(self, module):
        self.own, self.kept, self.weight = module.forward, {}, None
        self.branch, self.keeps = "cond", True
        module.forward = self

    def __call__(self, x):
        pair = self.kept.get(self.branch)
        if self.weight is not None and pair is not None:
            old, new = pair
            return new + self.weight * (new - old)
        out = self.own(x)
        if self.keeps:
            self.kept[self.branch] = (out, out) if pair is None else (pair[1], out)
        return out


def by_hand(attention, cfg, steps):
    """The loop of the scripts, with or without CFG-Cache."""
    network, asked = BlockFlow((3, 8, 12)), given(steps)
    scripted = [Scripted(block.attn) for block in network.blocks]
    plan = attention.plan_modules(steps)
    skips = (False,) * steps if cfg is None else cfg.plan_branches(steps).skips
    x = asked.latents
    delta = None

    def call(index, x, branch, condition):
        for one in scripted:
            one.branch, one.weight = branch, plan.weights[index]
            one.keeps = index >= plan.kept_from
        return network(x, torch.full((2,), asked.schedule.interval(index).time), condition)

    for index in range(steps):
        interval = asked.schedule.interval(index)
        cond = call(index, x, "cond", asked.cond)
        uncond = cond + delta if skips[index] else call(index, x, "uncond", asked.uncond)
        if not skips[index]:
            delta = uncond - cond
        x = x + (interval.end - interval.start) * (uncond + SCALE * (cond - uncond))
    return x


PRESETS = {"open-sora-1.2": 30, "latte": 50, "mochi": 64, "vchitect-2.0": 100}


@pytest.mark.parametrize(("preset", "steps"), [(None, 12), *PRESETS.items()])
def test_alone_it_is_the_loop_written_out(preset, steps):
    attention = AttentionExtrapolation(preset=preset)
    found = sample(
        attention, network=BlockFlow((3, 8, 12)), given=given(steps), guidance=CFG(scale=SCALE)
    )
    expected = by_hand(attention, None, steps)
    torch.testing.assert_close(found.sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("preset", "steps"), [(None, 12), *PRESETS.items()])
def test_beside_cfg_cache_it_is_the_loop_written_out(preset, steps):
    cfg, attention = FasterCache(preset=preset, bands=False).parts()
    found = sample(
        cfg, attention, network=BlockFlow((3, 8, 12)), given=given(steps), guidance=CFG(scale=SCALE)
    )
    expected = by_hand(attention, cfg, steps)
    torch.testing.assert_close(found.sample, expected, rtol=1e-5, atol=1e-5)


def test_modules_run_where_the_schedule_says_and_keep_two_outputs():
    policy = AttentionExtrapolation(interval=3, start=0.25)
    network = BlockFlow((3, 8, 12))
    counts = visits(network, "blocks.0.attn.qkv", "blocks.2.attn.qkv", "blocks.0.mlp.up")
    found = sample(policy, network=network, given=given(12), guidance=NoGuidance())
    runs = [w is None for w in policy.plan_modules(12).weights]
    assert runs == [True, True, True, True, False, False, True, False, False, True, False, True]
    assert counts == {
        "blocks.0.attn.qkv": 7,
        "blocks.2.attn.qkv": 7,
        "blocks.0.mlp.up": 12,
    }
    assert [c.sites["attention"][0] == 3 for c in found.trace.calls()] == runs
    # two outputs of three modules, [2, 96, 8] each
    assert found.trace.module_bytes == 2 * 3 * 2 * 96 * 8 * 4


def test_with_one_kept_output_that_is_reused():
    # the only step that ran so far is the first
    policy = AttentionExtrapolation(interval=2, start=0.0, most=1.0)
    flat = AttentionExtrapolation(interval=2, start=0.0, most=0.0)

    def after_two(own):
        rule = SkipPolicy(steps=(0, 1, 11))
        return sample(
            rule, own, network=BlockFlow((3, 8, 12)), given=given(12), guidance=NoGuidance()
        )

    assert torch.equal(after_two(policy).sample, after_two(flat).sample)


def test_a_step_that_a_rule_leaves_out_is_made_up_for():
    policy = AttentionExtrapolation(interval=4, start=0.0)
    # it would run at 0, 4, 8 and 11; the rule leaves out 4 and 8
    found = sample(
        SkipPolicy(steps=(0, 1, 2, 3, 5, 6, 7, 9, 10, 11)),
        policy,
        network=BlockFlow((3, 8, 12)),
        given=given(12),
        guidance=NoGuidance(),
    )
    ran = [c.index for c in found.trace.calls() if c.computed and c.sites["attention"][0]]
    assert ran == [0, 5, 9, 11]


def test_full_steps_beside_cfg_cache_run_attention_of_both_branches():
    cfg = CfgCache(period=4, start=0.25)
    attention = AttentionExtrapolation(interval=3, start=0.25, beside=cfg)
    found = sample(
        cfg, attention, network=BlockFlow((3, 8, 12)), given=given(12), guidance=CFG(scale=SCALE)
    )
    ran = {
        branch: [
            c.index
            for c in found.trace.calls()
            if c.branch == branch and c.computed and c.sites["attention"][0]
        ]
        for branch in ("cond", "uncond")
    }
    # attention alone would run at 0-3, 6, 9 and 11; both branches run at 0-2, 4, 8 and 11
    assert ran == {"cond": [0, 1, 2, 3, 4, 6, 8, 9, 11], "uncond": [0, 1, 2, 4, 8, 11]}
