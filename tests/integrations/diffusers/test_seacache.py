"""SeaCache beside diffusers' own hooks: the same filter, the same decisions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers.hooks.sea_cache")  # diffusers 0.42

from diffusers.hooks import sea_cache

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_policies.seacache import SeaCache, apply_sea_filter, mixing_at
from tiny_pipelines import FAMILIES, counted

STEPS = 16


@pytest.mark.parametrize("sigma", [1.0, 0.97, 0.6, 0.2, 0.01, 0.0])
@pytest.mark.parametrize("power", [2.0, 3.0])
@pytest.mark.parametrize("size", [(16, 3, 8, 12), (4, 1, 5, 7)])
def test_the_filter_is_that_of_diffusers(sigma, power, size):
    latents = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    ours = apply_sea_filter(latents, *mixing_at(sigma, "flow"), power)
    for k in range(2):
        theirs = sea_cache._apply_sea_filter(latents[k].movedim(0, -1), sigma, power)
        torch.testing.assert_close(ours[k], theirs.movedim(-1, 0), rtol=2e-4, atol=2e-4)


def calls_of_blocks(pipe, family, steps):
    """Steps and branches in which diffusers' hooks ran the blocks behind the first."""
    ran, block = [], pipe.transformer.blocks[-1]
    handle = block.attn1.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        latents = family.run(pipe, steps, **family.other)
    finally:
        handle.remove()
    return len(ran), latents


@pytest.mark.parametrize("name", ["wan-euler", "wan-unipc"])
@pytest.mark.parametrize("threshold", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("most", [2, 0])
def test_as_many_steps_are_computed_as_by_diffusers(name, threshold, most):
    family = FAMILIES[name]
    pipe = family.build()
    config = sea_cache.SeaCacheConfig(
        threshold=threshold, max_consecutive_cached=most, residual_order=0
    )
    pipe.transformer.enable_cache(config)
    theirs, _ = calls_of_blocks(pipe, family, STEPS)
    pipe = family.build()
    policy = SeaCache(threshold=threshold, max_consecutive=most or None, order=0)
    with attach(pipe, [policy]) as run, counted(pipe, family) as calls:
        family.run(pipe, STEPS, **family.other)
    assert len(calls) == run.traces[0].network_calls == theirs < 2 * STEPS


def test_packed_tokens_have_no_grid():
    family = FAMILIES["flux"]
    pipe = family.build()
    with attach(pipe, "seacache"), pytest.raises(CapabilityError, match="channels at 2"):
        family.run(pipe, 2)
    assert family.run(pipe, 2).isfinite().all()


@pytest.mark.parametrize("name", ["sdxl", "cogvideox", "stable-cascade-prior"])
def test_other_families_run_and_nothing_reused_changes_nothing(name):
    family = FAMILIES[name]
    pipe = family.build()
    plain = family.run(family.build(), 6)
    with attach(pipe, [SeaCache(threshold=0.0)]):
        assert torch.equal(family.run(pipe, 6), plain)
    with attach(pipe, [SeaCache(threshold=3.0)]) as run:
        assert family.run(pipe, 6).isfinite().all()
    assert run.traces[0].reused_calls > 0
