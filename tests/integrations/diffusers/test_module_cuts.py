"""Cuts of UNets: which modules are left out, whose output enters again, and what that costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from erta_bench.shapes_image import ShapesUNet
from erta_framework.errors import CapabilityError
from erta_framework.modules import find_branches, find_cut, measure
from tiny_pipelines import FAMILIES, build_model
from unet_cases import CASES, DOWN, PAIRS, SMALL, TEXT, UP, built, recorded, replaced, run


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map_tensors(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value


def leave_out(name: str, branch: int, step: int) -> dict[str, Any]:
    """What the members of a cut return: phantoms of NaN, then the output kept at a step."""
    network, members = built(name), find_cut(built(name), branch).members
    with recorded(network, members) as found:
        run(name, step)
    phantoms = {
        path: map_tensors(lambda x: torch.full_like(x, torch.nan), found[path])
        for path in members[:-1]
    }
    return {**phantoms, members[-1]: found[members[-1]]}


@pytest.mark.parametrize("name", CASES)
def test_a_unet_is_cut_at_each_of_its_skips(name: str) -> None:
    assert find_branches(built(name)) == range(CASES[name].skips)


@pytest.mark.parametrize(("name", "branch"), PAIRS)
def test_a_cut_is_the_full_network_with_one_tensor_replaced(name: str, branch: int) -> None:
    network, answers = built(name), leave_out(name, branch, step=0)
    *_, entry = answers
    with replaced(network, answers):
        short = run(name, 1)
    with replaced(network, {entry: answers[entry]}):
        oracle = run(name, 1)
    assert short.isfinite().all()
    assert torch.equal(short, oracle)
    assert not torch.equal(short, run(name, 1))


@pytest.mark.parametrize(("name", "branch"), PAIRS)
def test_an_output_kept_at_the_same_step_changes_nothing(name: str, branch: int) -> None:
    with replaced(built(name), leave_out(name, branch, step=1)):
        assert torch.equal(run(name, 1), expected(name))


@functools.cache
def expected(name: str) -> Tensor:
    return run(name, 1)


@pytest.mark.parametrize(("name", "branch"), PAIRS)
def test_the_share_of_a_cut_is_its_measured_flops(name: str, branch: int) -> None:
    network = built(name)
    full = measure(network, lambda: run(name, 1))
    answers = leave_out(name, branch, step=0)
    with replaced(network, answers):
        short = measure(network, lambda: run(name, 1))
    assert full.total - full.count_idle(answers) == short.total
    assert full.find_share(answers) == short.total / full.total


def test_skips_count_in_the_order_in_which_they_are_made() -> None:
    up0 = "up_blocks.0.resnets.0", "up_blocks.0.attentions.0"
    up1 = "up_blocks.1.resnets.0", "up_blocks.1.attentions.0"
    assert [find_cut(built("three stages"), b).members for b in range(9)] == [
        (*(f"down_blocks.{k}" for k in range(3)), "mid_block", "up_blocks.0", "up_blocks.1",
         "up_blocks.2.resnets.0", "up_blocks.2.resnets.1"),
        ("down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1",
         "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2.resnets.0"),
        ("down_blocks.0.downsamplers.0", "down_blocks.1", "down_blocks.2", "mid_block",
         "up_blocks.0", "up_blocks.1"),
        ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", *up1,
         "up_blocks.1.resnets.1", "up_blocks.1.attentions.1"),
        ("down_blocks.1.resnets.1", "down_blocks.1.attentions.1", "down_blocks.1.downsamplers.0",
         "down_blocks.2", "mid_block", "up_blocks.0", *up1),
        ("down_blocks.1.downsamplers.0", "down_blocks.2", "mid_block", "up_blocks.0"),
        ("down_blocks.2", "mid_block", *up0, "up_blocks.0.resnets.1", "up_blocks.0.attentions.1"),
        ("down_blocks.2.resnets.1", "down_blocks.2.attentions.1", "mid_block", *up0),
        ("mid_block",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "highest"),
    [
        ("UNet2DConditionModel", 11),  # Stable Diffusion 1.5
        ("UNetSpatioTemporalConditionModel", 11),
        ("UNet3DConditionModel", 11),
        ("UNetMotionModel", 11),
    ],
)
def test_cuts_of_networks_of_full_size(cls: str, highest: int) -> None:
    with torch.device("meta"):
        network = getattr(diffusers, cls)()
    assert find_branches(network) == range(highest + 1)
    assert find_cut(network, highest).members == ("mid_block",)
    deepest = find_cut(network, 0).members
    assert deepest[:8] == (
        *(f"down_blocks.{index}" for index in range(4)),
        "mid_block",
        *(f"up_blocks.{index}" for index in range(3)),
    )
    assert {member.rpartition(".")[2] for member in deepest[8:]} == {"0", "1"}  # two of three units


def test_a_cut_inside_a_module_that_holds_the_network() -> None:
    whole = ShapesUNet()
    for branch in find_branches(whole.unet):
        own = find_cut(whole.unet, branch)
        assert find_cut(whole, branch).members == tuple(f"unet.{path}" for path in own.members)
        assert (own.path, own.kind) == (f"cut:{branch}", "cut")


@pytest.mark.parametrize("branch", [-1, 4, True])
def test_a_branch_out_of_range_is_refused_with_the_range(branch: int) -> None:
    with pytest.raises(CapabilityError, match=f"no skip {branch}.*from 0 to 3: its 4 skips"):
        find_cut(built("sd"), branch)


def test_what_is_no_unet_cannot_be_cut() -> None:
    network = FAMILIES["wan-euler"].build().transformer
    with pytest.raises(CapabilityError, match="WanTransformer3DModel cannot be cut: it is no UNet"):
        find_cut(network, 0)
    assert not find_branches(network)


@pytest.mark.parametrize(
    ("down", "up", "path"),
    [("SkipDownBlock2D", "SkipUpBlock2D", "down_blocks.0"), ("KDownBlock2D", "KUpBlock2D", "up")],
)
def test_units_that_take_skips_in_another_way_are_refused(down: str, up: str, path: str) -> None:
    config = {"block_out_channels": (32, 32), "layers_per_block": 2, **SMALL}
    if down.startswith("Skip"):
        network = build_model(
            "UNet2DModel", down_block_types=(down,) * 2, up_block_types=(up,) * 2, **config
        )
    else:
        config |= {"resnet_time_scale_shift": "ada_group", "mid_block_type": None}
        network = build_model(
            "UNet2DConditionModel", down_block_types=(down,) * 2, up_block_types=(up,) * 2, **config
        )
    with pytest.raises(CapabilityError, match=f"cannot be cut: .*{path}"):
        find_cut(network, 0)


def test_a_unet_without_a_middle_is_not_cut_at_its_last_skip() -> None:
    network = build_model(
        "UNet2DConditionModel",
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=DOWN,
        up_block_types=UP,
        mid_block_type=None,
        **TEXT,
    )
    assert find_branches(network) == range(3)
    assert find_cut(network, 2).members == (
        "down_blocks.1",
        "up_blocks.0.resnets.0",
    )
