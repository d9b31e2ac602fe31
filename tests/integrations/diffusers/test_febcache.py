"""FEB-Cache through unmodified pipelines: nothing reused, a table, and the calibration of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from erta_bench.shapes_image import load_flux, load_unet
from erta_framework import attach
from erta_framework.errors import CapabilityError, ProfileMismatchError
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.shapes_wan import load as load_wan
from erta_policies.febcache import (
    FEBCache,
    FEBCacheProfiler,
    ModuleTable,
    Search,
    read_table,
)
from erta_policies.noise_scale import NoiseScale
from tiny_pipelines import FAMILIES

STEPS = 6
MODELS = {"shapes-wan": load_wan, "shapes-flux": load_flux, "shapes-unet": load_unet}
# a module that each network runs once a call, of the attention and of the MLPs
PATHS = {
    "wan-euler": ("blocks.1.attn1.to_q", "blocks.1.ffn.net.2"),
    "sd": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    ),
    "flux": ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2"),
}


def sample(name: str, policies: Any) -> tuple[Tensor, Any]:
    family = FAMILIES[name]
    pipe = family.build()
    with attach(pipe, policies) as attached:
        latents = family.run(pipe, STEPS)
    return latents, attached


@pytest.mark.parametrize("name", MODELS)
def test_a_table_without_reuse_changes_no_bit_of_trained_models(name: str) -> None:
    model = MODELS[name]()
    pipe = pipeline(model)
    prompt = list(model.demo_prompts()[1])[:1]

    def answer() -> Tensor:
        return samples_of(model, pipe(**request(model, prompt, seeds=[3], num_steps=4)))

    expected = answer()
    with attach(pipe, [FEBCache(table="NNNN", noise=NoiseScale(scale=1.0))]):
        assert torch.equal(answer(), expected)
    for changed in (FEBCache(table="NNNN"), FEBCache(table="NBNM", noise=None)):
        with attach(pipe, [changed]):
            assert not torch.equal(answer(), expected)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_modules_run_where_the_table_lets_them(name: str) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    network = getattr(pipe, "transformer", None) or pipe.unet
    counts = dict.fromkeys(PATHS[name], 0)

    def count(path: str) -> Any:
        def hook(*_: Any) -> None:
            counts[path] += 1

        return hook

    named: dict[str, nn.Module] = dict(network.named_modules())
    for path in PATHS[name]:
        named[path].register_forward_hook(count(path))
    with attach(pipe, [ModuleTable(table="NBANMB")]) as attached:
        family.run(pipe, STEPS)
    calls = attached.traces[0].network_calls // STEPS
    attention, mlp = PATHS[name]
    assert counts == {attention: 3 * calls, mlp: 3 * calls}
    assert attached.traces[0].network_calls == calls * STEPS
    assert attached.traces[0].spared_samples > 0


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd"])
def test_the_loop_of_the_calibration_is_closed(name: str) -> None:
    """A run under the found table is the trajectory that the calibration walked, bit for bit."""
    profiler = FEBCacheProfiler(metric="l2", search=Search(scale=0.5))
    walked, attached = sample(name, [profiler])
    (profile,) = attached.emitted
    table = read_table(profile)
    run, _ = sample(name, [ModuleTable(profile=profile)])
    assert torch.equal(run, walked)
    assert set(table.states) - {"N"}
    assert not torch.equal(walked, FAMILIES[name].run(FAMILIES[name].build(), STEPS))


def test_a_profile_of_another_pipeline_is_refused() -> None:
    _, attached = sample("wan-euler", [FEBCacheProfiler()])
    with pytest.raises(ProfileMismatchError, match=r"model\.class|network|class"):
        sample("flux", [ModuleTable(profile=attached.emitted[0])])


def test_a_network_without_attention_is_refused() -> None:
    pipe = FAMILIES["unconditional"].build()
    with pytest.raises(CapabilityError, match="ModuleTable"):
        attach(pipe, [ModuleTable(table="NBNB")])
