"""Guidance: the branches of every step and how they combine."""

from __future__ import annotations

import math

import pytest
import torch

from erta_framework import CFG, NoGuidance
from erta_framework.errors import InputError

COND, UNCOND = torch.ones(2, 1), torch.zeros(2, 1)


def test_no_guidance_is_the_conditional_branch():
    (branch,) = NoGuidance().branches(COND, UNCOND, 0, 10)
    assert (branch.name, branch.copies) == ("cond", 1)
    assert branch.condition is COND
    assert NoGuidance().names == ("cond",)
    output = torch.randn(2, 3)
    assert NoGuidance().combine({"cond": output}) is output


def test_separate_branches():
    cond, uncond = CFG().branches(COND, UNCOND, 3, 10)
    assert (cond.name, uncond.name) == ("cond", "uncond") == CFG().names
    assert cond.condition is COND
    assert uncond.condition is UNCOND
    x = torch.randn(2, 3)
    assert cond.expand(x) is x


def test_batched_branch_doubles_latents_and_conditions():
    (branch,) = CFG(batched=True).branches(COND, UNCOND, 3, 10)
    assert CFG(batched=True).names == ("cond+uncond",)
    assert torch.equal(branch.condition, torch.cat([COND, UNCOND]))
    x = torch.randn(2, 3)
    assert torch.equal(branch.expand(x), torch.cat([x, x]))


def test_combination():
    outputs = {"cond": torch.tensor([3.0]), "uncond": torch.tensor([1.0])}
    assert CFG(scale=2.5).combine(outputs).item() == 6.0
    assert CFG(scale=0.0).combine(outputs).item() == 1.0
    both = {"cond+uncond": torch.tensor([3.0, 1.0])}
    assert CFG(scale=2.5, batched=True).combine(both).item() == 6.0


def test_names_cover_every_step():
    for guidance in (
        CFG(start=0.2, stop=0.5),
        CFG(start=0.2, stop=0.5, batched=True),
        CFG(batched=True),
        CFG(),
    ):
        seen = {b.name for i in range(10) for b in guidance.branches(COND, UNCOND, i, 10)}
        assert seen == set(guidance.names)


@pytest.mark.parametrize("num_steps", [10, 30, 50, 100])
def test_interval_is_not_shifted_by_rounding(num_steps):
    for edge in range(num_steps + 1):
        guidance = CFG(start=edge / num_steps, stop=1.0)
        guided = [
            i for i in range(num_steps) if len(guidance.branches(COND, UNCOND, i, num_steps)) == 2
        ]
        assert guided == list(range(edge, num_steps))


def test_interval_given_as_a_short_decimal():
    # 0.07 * 100 is 7.000000000000001
    assert len(CFG(start=0.07).branches(COND, UNCOND, 7, 100)) == 2
    assert len(CFG(start=0.07).branches(COND, UNCOND, 6, 100)) == 1


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (math.nan, 1.0)])
def test_impossible_interval(start, stop):
    with pytest.raises(InputError, match="must lie within"):
        CFG(start=start, stop=stop)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_impossible_scale(scale):
    with pytest.raises(InputError, match="guidance scale is"):
        CFG(scale=scale)


def test_missing_unconditional_condition():
    with pytest.raises(InputError, match="CFG needs an unconditional condition"):
        CFG().branches(COND, None, 0, 10)
