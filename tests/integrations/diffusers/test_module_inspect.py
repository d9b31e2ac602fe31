"""`inspect_places`: the places of a pipeline in groups, measured in one request."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from erta_framework.errors import CapabilityError
from erta_framework.modules import find_cut
from erta_integrations.diffusers import PlaceGroup, inspect, inspect_places
from erta_integrations.shapes_wan import ShapesWan
from tiny_pipelines import FAMILIES


def request(name: str, steps: int = 1, **changes: Any) -> dict[str, Any]:
    family = FAMILIES[name]
    fixed = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
    return {**fixed, **family.inputs(1), **family.size, **changes}


def inspected(name: str, pipe: Any = None, **changes: Any) -> dict[str, PlaceGroup]:
    pipe = FAMILIES[name].build() if pipe is None else pipe
    return {group.name: group for group in inspect_places(pipe, **request(name, **changes))}


def test_places_whose_names_differ_in_numbers_are_one_group() -> None:
    groups = inspected("flux")
    assert {name: (g.kind, g.count, g.depth) for name, g in groups.items()} == {
        "transformer_blocks.*": ("block", 2, (0, 1)),
        "transformer_blocks.*.attn": ("attention", 2, (0, 1)),
        "transformer_blocks.*.ff": ("mlp", 2, (0, 1)),
        "transformer_blocks.*.ff_context": ("mlp", 2, (0, 1)),
        "single_transformer_blocks.*": ("block", 2, (2, 3)),
        "single_transformer_blocks.*.attn": ("attention", 2, (2, 3)),
        "single_transformer_blocks.*.proj_out": ("mlp", 2, (2, 3)),
    }
    assert {group.network for group in groups.values()} == {"transformer"}
    blocks = [groups["transformer_blocks.*"], groups["single_transformer_blocks.*"]]
    assert 0.9 < sum(group.share for group in blocks) < 1
    fused, attention = (groups[f"single_transformer_blocks.*.{n}"] for n in ("proj_out", "attn"))
    assert fused.share > attention.share  # what feeds it counts too
    json.dumps([group.as_record() for group in groups.values()])


def test_cuts_are_listed_one_by_one_with_what_they_leave_out() -> None:
    groups = inspected("sd")
    shares = [groups[f"cut:{branch}"].share for branch in range(4)]
    assert shares == sorted(shares, reverse=True)
    assert shares[3] == groups["mid_block"].share
    network = FAMILIES["sd"].build().unet
    *_, entry = find_cut(network, 0).members
    assert entry == "up_blocks.1.resnets.0"
    assert groups["cut:0"].kept_bytes == 2 * 8 * 8 * 8 * 4  # rows, channels, pixels, bytes


def test_each_network_of_a_pipeline_is_measured() -> None:
    groups = inspect_places(FAMILIES["wan22"].build(), **request("wan22", steps=4))
    one, two = (
        [g for g in groups if g.network == name] for name in ("transformer", "transformer_2")
    )
    assert [dataclasses.replace(g, network="transformer_2") for g in one] == two


def test_a_network_that_does_not_run_is_named() -> None:
    pipe = FAMILIES["wan22"].build()
    with pytest.raises(CapabilityError, match="transformer_2 of WanPipeline did not run"):
        inspect_places(pipe, **request("wan22", steps=1))
    assert inspect_places(pipe, ["transformer"], **request("wan22", steps=1))


def test_the_pipeline_is_as_before_and_so_is_its_output() -> None:
    family, pipe = FAMILIES["wan-euler"], FAMILIES["wan-euler"].build()
    before = family.run(pipe, steps=2)
    inspected("wan-euler", pipe)
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(family.run(pipe, steps=2), before)
    with pytest.raises(TypeError):
        inspect_places(pipe, nonsense=1)
    assert "forward" not in vars(pipe.transformer)


def test_a_compiled_network_is_measured_eagerly() -> None:
    plain = inspected("wan-euler")
    pipe = FAMILIES["wan-euler"].build()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert inspected("wan-euler", pipe) == plain


def test_a_network_without_places_is_refused_before_the_request() -> None:
    class Flat(nn.Module):
        def forward(self, hidden_states: Any, timestep: Any) -> Any:
            return hidden_states

    class Pipe:
        transformer = Flat()

    with pytest.raises(CapabilityError, match="Flat has no places"):
        inspect_places(Pipe(), prompt="never used")
    assert "  places: none" in inspect(Pipe())


def test_inspect_says_how_many_places_there_are() -> None:
    assert "  places: 2 block, 2 attention, 2 cross, 2 mlp" in inspect(
        FAMILIES["wan-euler"].build()
    )
    text = inspect(FAMILIES["hunyuan-video"].build())
    assert "  places: 4 block, 4 attention, 6 mlp" in text  # without the text refiner
    assert "2 down" in inspect(FAMILIES["sd"].build())
    assert "4 cut" in inspect(FAMILIES["sd"].build())


def test_a_bundled_model_has_the_places_of_its_network() -> None:
    groups = {group.name: group for group in ShapesWan().inspect_places("")}
    assert list(groups) == ["blocks.*", "blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn"]
    assert {group.kept_bytes for group in groups.values()} == {5 * 80 * 160 * 4}
