"""SmoothCache on unmodified pipelines."""

from __future__ import annotations

import pytest
import torch

from erta_integrations.diffusers import attach
from erta_policies.smoothcache import SmoothCache, SmoothCacheProfiler
from module_plans import gated
from tiny_pipelines import FAMILIES

STEPS = 6
NAMES = ("wan-euler", "flux", "sd", "sd3", "pixart-sigma")


def run(name, policies, batch=1):
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, list(policies)) as attached:
        latents = family.run(pipe, STEPS, batch=batch)
    assert not any(gated(part) for part in pipe.components.values() if hasattr(part, "modules"))
    return latents, attached


@pytest.mark.parametrize("name", NAMES)
def test_measuring_changes_no_bit_and_a_schedule_follows(name):
    family = FAMILIES[name]
    plain = family.run(family.build(), STEPS)
    latents, full = run(name, [SmoothCacheProfiler()])
    assert torch.equal(latents, plain)
    assert full.traces[0].work == full.traces[0].network_samples
    profile = full.profile()
    latents, whole = run(name, [SmoothCache(profile=profile, threshold=0.0)])
    assert torch.equal(latents, plain)
    assert whole.traces[0].work == whole.traces[0].network_samples
    latents, reused = run(name, [SmoothCache(profile=profile, threshold=9.0)])
    assert latents.isfinite().all()
    assert reused.traces[0].work < reused.traces[0].network_samples
    assert reused.traces[0].network_calls == full.traces[0].network_calls


@pytest.mark.parametrize("name", ["flux", "wan-euler"])
def test_a_budget_of_work_is_kept(name):
    profile = run(name, [SmoothCacheProfiler()])[1].profile()
    trace = run(name, [SmoothCache(profile=profile, budget={"work": 4.5})])[1].traces[0]
    assert trace.work <= 4.5 / STEPS * trace.network_samples + 1e-6
