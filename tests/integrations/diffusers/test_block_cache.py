"""BlockCache and PreciseCache on unmodified pipelines."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from erta_integrations.diffusers import attach
from erta_policies.precisecache import BlockCache, PreciseCache
from module_plans import gated
from tiny_pipelines import FAMILIES

STEPS = 8
NAMES = ("wan-euler", "flux", "sd", "sd3", "hunyuan-video", "pixart-sigma")


def run(name, policies, batch=1):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, list(policies)) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert not any(gated(part) for part in pipe.components.values() if hasattr(part, "modules"))
    return latents, attached.traces[0]


@pytest.mark.parametrize("name", NAMES)
def test_profiles_alone_change_no_bit(name):
    family = FAMILIES[name]
    latents, _ = run(name, [BlockCache(skip_ratio=0.5, length=0)])
    assert torch.equal(latents, family.run(family.build(), STEPS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 2])
def test_blocks_are_left_out_between_profiles(name, batch):
    latents, trace = run(name, [BlockCache(skip_ratio=0.5, length=3)], batch)
    assert latents.isfinite().all()
    for step in trace.steps:
        for call in step.calls:
            ran, reused, _ = call.sites["block"]
            assert reused == (0 if step.index % 4 == 0 else (ran + reused) // 2)
    assert trace.work < trace.network_samples


def test_blocks_that_run_are_counted_by_hooks():
    family = FAMILIES["flux"]
    pipe, counts = family.build(), Counter()
    lists = ("transformer_blocks", "single_transformer_blocks")
    for path in [f"{name}.{place}" for name in lists for place in (0, 1)]:
        block = pipe.transformer.get_submodule(path)
        inner = next(m for m in block.modules() if m is not block and list(m.parameters(False)))
        inner.register_forward_pre_hook(lambda *_, path=path: counts.update([path]))
    with attach(pipe, [BlockCache(skip_ratio=0.5, length=3)]):
        family.run(pipe, STEPS)
    assert sorted(counts.values()) == [2, 2, STEPS, STEPS] or counts.total() == 2 * 4 + 6 * 2


def test_flash_runs_trials_with_whole_networks():
    _, trace = run("wan-euler", [PreciseCache(variant="flash", alpha=1.0, skip_ratio=0.5)])
    assert trace.trial_calls == STEPS - 1
    assert trace.network_calls + trace.reused_calls == 2 * STEPS
    assert trace.work < trace.network_samples
