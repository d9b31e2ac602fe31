"""LFCache through pipelines: trials beside their calls, and who takes none."""

from __future__ import annotations

import pytest
import torch

from erta_framework import CFG, Sampler
from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_policies.lfcache import LFCache
from tiny_pipelines import FAMILIES, counted


@pytest.mark.parametrize("name", ["wan-euler", "sdxl", "z-image", "sd3"])
def test_pipelines_count_trials_apart_and_draw_the_same_noise(name):
    family = FAMILIES[name]
    pipe = family.build()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    with attach(pipe, [LFCache(alpha=1.0)]) as run, counted(pipe, family) as calls:
        latents = family.run(pipe, 8, **family.other)
    assert torch.equal(torch.random.get_rng_state(), state)
    trace = run.traces[0]
    assert latents.isfinite().all()
    assert trace.trial_calls == 7
    assert len(calls) == trace.network_calls + trace.trial_calls
    assert trace.reused_calls > 0
    plain = family.run(family.build(), 8, **family.other)
    with attach(pipe, [LFCache(alpha=0.0)]):
        assert torch.equal(family.run(pipe, 8, **family.other), plain)


def test_flux_is_refused_at_attach_with_the_reason():
    with pytest.raises(
        CapabilityError, match=r"LFCache.*takes the positions of its tokens in img_ids"
    ):
        attach(FAMILIES["flux"].build(), "lfcache")


@pytest.mark.slow
def test_where_it_skips_on_the_bundled_model_is_not_where_the_paper_says():
    """The page on LFCache says so: early, and more in the first half than at low noise."""
    from erta_integrations.shapes_wan import load

    model = load()
    policy, guidance = LFCache(alpha=0.5, multiple=4), CFG(scale=3.0)
    prompts = model.demo_prompts()[1][:4]
    (trace,) = Sampler([policy], num_steps=50, guidance=guidance).sample(model, prompts).traces
    reused = [
        step.index
        for sample in range(len(prompts))
        for step in trace.steps
        if not step.calls[0].computed_for(sample)
    ]
    assert min(reused) < 10
    assert 0.2 < sum(index >= 25 for index in reused) / len(reused) < 0.5
    assert trace.trial_calls == 49
    assert trace.trial_share == pytest.approx(49 * 2 * 4 * 4 / (5 * 16 * 16))
