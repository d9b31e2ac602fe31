"""ProCache on unmodified pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erta_bench.shapes_image import load_flux, load_unet
from erta_framework import attach
from erta_framework.errors import CapabilityError
from erta_framework.modules import Select
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import load as load_wan
from erta_policies.procache import ProCache, TokenRatio
from erta_policies.shared import TokenScore
from tiny_pipelines import FAMILIES

STEPS = 6
MODELS = {"shapes-wan": load_wan, "shapes-flux": load_flux, "shapes-unet": load_unet}


def run(name: str, policies: Any) -> tuple[Any, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, STEPS)
    return latents, attached.traces[0]


@pytest.mark.parametrize("name", MODELS)
def test_full_steps_alone_change_no_bit_of_trained_models(name: str) -> None:
    model = MODELS[name]()
    pipe = pipeline(model)
    prompt = list(model.demo_prompts()[1])[:1]

    def answer() -> torch.Tensor:
        return samples_of(model, pipe(**request(model, prompt, seeds=[3], num_steps=4)))

    untouched = answer()
    with attach(pipe, [ProCache(plan="FFFF")]) as attached:
        found = answer()
    assert torch.equal(found, untouched)
    (trace,) = attached.traces
    assert trace.work == trace.network_samples


@pytest.mark.parametrize(
    "name", ["dit", "pixart-sigma", "wan-euler", "flux", "sd", "sd3", "cogvideox"]
)
def test_tokens_are_refreshed_where_the_plan_says(name: str) -> None:
    family = FAMILIES[name]
    latents, trace = run(name, [ProCache(plan="FcScFS", depth=0.5, ratio=TokenRatio(base=0.5))])
    assert latents.isfinite().all()
    assert not torch.equal(latents, family.run(family.build(), STEPS))
    ran = [[sum(s[0] for s in call.sites.values()) for call in step.calls] for step in trace.steps]
    total = [sum(map(sum, call.sites.values())) for call in trace.steps[0].calls]
    assert ran[0] == ran[4] == total
    assert ran[1] == ran[3] == [0] * len(total)
    assert all(0 < one < every for one, every in zip(ran[2], total, strict=True))
    attention = [call.sites["attention"][0] for call in trace.steps[2].calls]
    assert attention == [0] * len(total)
    plain = run(name, [ProCache(plan="FcccFc")])[1]
    assert plain.work < trace.work < trace.network_samples


def test_a_fused_place_refreshes_tokens_with_its_attention_reused() -> None:
    """FLUX' single blocks: both projections run on the tokens, the attention does not run."""
    settings = {"depth": 0.0, "ratio": TokenRatio(base=1.0)}
    whole, trace = run("flux", [ProCache(plan="FSFSFS", **settings)])
    # the attention alone is reused where every token runs
    kept = ProCache(plan="FcFcFc", sites=Select(kind=("attention",)))
    alone, reused = run("flux", [kept])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
    assert trace.work == pytest.approx(reused.work, rel=1e-6)


@pytest.mark.parametrize("name", ["dit", "pixart-sigma"])
def test_tokens_are_spread_over_the_grid_of_the_latents(name: str) -> None:
    spread = TokenScore(spread=0.6, cell=2)
    rule = ProCache(plan="FcScFS", depth=0.0, ratio=TokenRatio(base=0.5), score=spread)
    latents, _ = run(name, [rule])
    assert latents.isfinite().all()


@pytest.mark.parametrize("name", ["animatediff", "ernie-image", "sana"])
def test_modules_without_tokens_of_each_sample_are_named(name: str) -> None:
    """Frames or tokens in place of samples, and a grid in place of tokens; reused, they may be."""
    with pytest.raises(CapabilityError, match=r"refreshes tokens \[\d, N, D\].*select=False"):
        run(name, [ProCache(plan="FcScFS", depth=0.0)])
    latents, _ = run(name, [ProCache(plan="FcScFS", select=False)])
    assert latents.isfinite().all()
