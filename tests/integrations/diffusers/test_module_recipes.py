"""TaylorSeer, HiCache, FORA and PAB on modules of pipelines, beside the caches of diffusers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_bench.other_caches import bridge
from erta_bench.shapes_image import load_flux, load_unet
from erta_framework import attach
from erta_framework.errors import CapabilityError
from erta_framework.modules import Select
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import load as load_wan
from erta_policies.ertacache import SkipPolicy
from erta_policies.pab import PAB
from erta_policies.taylorseer import FORA, HiCache, TaylorSeer
from tiny_pipelines import FAMILIES

STEPS = 10
WHOLE = {
    # modules by their names, as diffusers' TaylorSeer takes them
    "wan-euler": [r"blocks\.\d+\.(attn1|attn2|ffn)"],
    "flux": [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.proj_out",
    ],
    "cogvideox": [r"transformer_blocks\.\d+\.(attn1|ff)"],
    "hunyuan-video": [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.proj_out",
    ],
    "qwen-image": [r"transformer_blocks\.\d+\.(attn|img_mlp|txt_mlp)"],
}
NULL = (TaylorSeer, HiCache, FORA)


def sample(name: str, policies: Any, steps: int = STEPS, **asked: Any) -> tuple[Tensor, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, steps, **asked)
    return latents, attached.traces[0]


def plain(name: str, steps: int = STEPS, **asked: Any) -> Tensor:
    family = FAMILIES[name]
    latents: Tensor = family.run(family.build(), steps, **asked)
    return latents


def rival(name: str, cache: str, asked: Any = None, **settings: Any) -> Tensor:
    """A cache of diffusers on the pipeline."""
    family = FAMILIES[name]
    pipe = family.build()
    with bridge(pipe, cache, **settings):
        latents: Tensor = family.run(pipe, STEPS, **(asked or {}))
    return latents


def assert_close(found: Tensor, expected: Tensor, untouched: Tensor) -> None:
    """Closer to what is expected by far than to the run without a cache."""
    far = float((expected - untouched).abs().max())
    assert far > 1e-3
    assert float((found - expected).abs().max()) < 1e-3 * far


# ---------------------------------------------------------------------------- TaylorSeer
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_taylorseer_on_modules_is_that_of_diffusers(name: str, order: int) -> None:
    expected = rival(
        name,
        "TaylorSeer",
        cache_interval=3,
        disable_cache_before_step=2,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=WHOLE[name],
    )
    recipe = TaylorSeer(interval=3, first=2, order=order, schedule="diffusers", level="modules")
    found, trace = sample(name, [recipe])
    assert_close(found, expected, plain(name))
    assert trace.unassigned == {}


def test_by_default_diffusers_forecasts_attention_alone() -> None:
    settings = {"cache_interval": 3, "taylor_factors_dtype": torch.float32}
    expected = rival("flux", "TaylorSeer", **settings)
    recipe = TaylorSeer(
        interval=3, schedule="diffusers", level="modules", sites=Select(kind=("attention",))
    )
    assert_close(sample("flux", [recipe])[0], expected, plain("flux"))


# ----------------------------------------------------------------------- what is computed
def test_a_fused_output_is_one_place_with_what_feeds_it() -> None:
    _, trace = sample("flux", [FORA(interval=2, counting="up", level="modules")], steps=4)
    kept, reused = (trace.steps[index].calls[0].sites for index in (0, 1))
    # 2 double blocks with attn, ff and ff_context; 2 single blocks with attn inside of proj_out
    assert kept == {"attention": (4, 0, 0), "mlp": (6, 0, 0)}
    assert reused == {"attention": (0, 2, 2), "mlp": (0, 6, 0)}
    assert trace.unassigned == {}


def test_what_feeds_a_fused_output_is_not_kept() -> None:
    attention_of_singles = Select(kind=("attention",), stack="single_transformer_blocks")
    sizes = {}
    for name, sites in (("both", None), ("feeding", attention_of_singles)):
        _, trace = sample("flux", [FORA(interval=2, level="modules", sites=sites)], steps=3)
        sizes[name] = trace.module_bytes
    fused = Select(kind=("mlp",), stack="single_transformer_blocks")
    doubles = Select(kind=("attention", "mlp"), stack="transformer_blocks")
    alone = [
        sample("flux", [FORA(interval=2, level="modules", sites=sites)], steps=3)[1].module_bytes
        for sites in (fused, doubles)
    ]
    assert sizes["both"] == sum(alone)
    assert sizes["feeding"] > 0


@pytest.mark.parametrize("recipe", NULL)
@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd", "sd3", "dit", "pixart-sigma"])
def test_modules_that_run_at_every_step_change_no_bit(name: str, recipe: Any) -> None:
    latents, trace = sample(name, [recipe(interval=1, level="modules")], steps=4)
    assert torch.equal(latents, plain(name, steps=4))
    assert trace.work == trace.network_samples


MODELS = {
    "shapes-wan": (load_wan, 100.0),
    "shapes-flux": (load_flux, 100.0),
    "shapes-unet": (load_unet, 100.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_modules_that_run_at_every_step_change_no_bit_of_trained_models(name: str) -> None:
    model = MODELS[name][0]()
    pipe = pipeline(model)
    prompt = list(model.demo_prompts()[1])[:1]

    def answer() -> Tensor:
        return samples_of(model, pipe(**request(model, prompt, seeds=[3], num_steps=4)))

    expected = answer()
    for policy in (TaylorSeer(interval=1, level="modules"), PAB(spatial=1)):
        with attach(pipe, [policy]):
            assert torch.equal(answer(), expected)
    with attach(pipe, [TaylorSeer(interval=2, first=1, level="modules")]):
        assert not torch.equal(answer(), expected)


# ----------------------------------------------------------------------------------- PAB
def window(low: float, high: float, *kinds: str) -> dict[str, Any]:
    return {f"{kind}_attention_timestep_skip_range": (low, high) for kind in kinds}


@pytest.mark.parametrize("name", ["flux", "cogvideox", "hunyuan-video", "latte"])
@pytest.mark.parametrize("reach", [2, 3])
def test_pab_is_that_of_diffusers(name: str, reach: int) -> None:
    skips = {"spatial_attention_block_skip_range": reach}
    expected = rival(name, "PyramidAttentionBroadcast", **skips, **window(100, 800, "spatial"))
    # diffusers finds "transformer_blocks" in "temporal_transformer_blocks", so its spatial range
    # goes for these as well
    policy = PAB(spatial=reach, temporal=reach if name == "latte" else None)
    found, _ = sample(name, [policy])
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain(name))


def test_with_a_call_for_each_branch_diffusers_answers_one_branch_with_the_other() -> None:
    """It has one count and one output for both calls of a step; with one call they are equal."""
    skips = {"spatial_attention_block_skip_range": 2, "cross_attention_block_skip_range": 3}
    ranges = window(100, 800, "spatial", "cross")
    policy = PAB(spatial=2, cross=3)
    alone = {"guidance_scale": 1.0}
    expected = rival("wan-euler", "PyramidAttentionBroadcast", alone, **skips, **ranges)
    assert torch.equal(sample("wan-euler", [policy], **alone)[0], expected)
    assert not torch.equal(expected, plain("wan-euler", **alone))
    mixed = rival("wan-euler", "PyramidAttentionBroadcast", **skips, **ranges)
    found, full = sample("wan-euler", [policy])[0], plain("wan-euler")
    assert (found - full).norm() < (mixed - full).norm()


def test_pab_with_a_range_for_each_kind_is_that_of_diffusers() -> None:
    skips = {
        "spatial_attention_block_skip_range": 2,
        "temporal_attention_block_skip_range": 3,
        "cross_attention_block_skip_range": 5,
        # one finds no temporal blocks, as the names begin with it
        "spatial_attention_block_identifiers": (r"^transformer_blocks",),
        "cross_attention_block_identifiers": (r"^transformer_blocks",),
    }
    ranges = window(150, 950, "spatial", "temporal", "cross")
    expected = rival("latte", "PyramidAttentionBroadcast", **skips, **ranges)
    found, trace = sample("latte", [PAB(spatial=2, temporal=3, cross=5, window=(150, 950))])
    assert torch.equal(found, expected)
    assert trace.unassigned == {}


def test_a_range_for_what_is_not_there_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"kind=\('cross',\).*nothing matches"):
        attach(FAMILIES["flux"].build(), [PAB(cross=6)])


def test_kinds_without_a_range_are_named_in_the_trace() -> None:
    _, trace = sample("latte", [PAB(spatial=2)], steps=3)
    assert [*trace.unassigned.values()] == [
        ("temporal_transformer_blocks.0.attn1", "temporal_transformer_blocks.1.attn1")
    ]


def test_beside_a_step_rule_ages_count() -> None:
    rule = SkipPolicy(steps=(0, 1, 3, 4, 7, 9))
    everywhere = (-1.0, 2000.0)
    _, trace = sample("wan-euler", [rule, PAB(spatial=4, window=everywhere)])
    ran = {c.index: c.sites["attention"][0] for c in trace.calls() if c.sites}
    # step 4 is due; at 7 the output is of 4, at 9 step 8 was due and left out
    assert ran == {0: 2, 1: 0, 3: 0, 4: 2, 7: 0, 9: 2}


def test_mlps_are_kept_at_listed_timesteps_and_reused_after_them() -> None:
    pipe = FAMILIES["wan-euler"].build()
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(STEPS)
    times = [round(float(t)) for t in scheduler.timesteps]
    policy = PAB(spatial=2, mlp_times=(times[2], times[6]), mlp_skip=2, mlp_depth="0:1")
    _, trace = sample("wan-euler", [policy])
    ran = {c.index: c.sites["mlp"][0] for c in trace.calls()}
    assert ran == {index: 0 if index in (3, 4, 7, 8) else 1 for index in range(STEPS)}
