"""ControlNets: they run on every step as before, and only the network they feed is skipped."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.network import find_networks
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import (
    FAMILIES,
    Family,
    build_image_vae,
    build_model,
    build_pipeline,
    combine_inputs,
    counted,
    drawn,
    flow,
)

EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(steps=(0, 2, 5))
STEPS = 6


def flux_controlnet() -> Any:
    """Flux with a ControlNet of its own."""
    flux = FAMILIES["flux"].build()
    config = {
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    }
    return build_pipeline(
        "FluxControlNetPipeline",
        scheduler=flow(),
        transformer=flux.transformer,
        controlnet=build_model("FluxControlNetModel", **config),
        vae=build_image_vae(),
    )


KINDS: dict[str, Family] = {
    "sdxl": FAMILIES["sdxl-controlnet"],
    "flux": replace(
        FAMILIES["flux"],
        build=flux_controlnet,
        inputs=combine_inputs(
            FAMILIES["flux"].inputs,
            lambda batch: {"control_image": drawn(batch, 3, 8, 8).sigmoid()},
        ),
    ),
}


@functools.cache
def built(kind: str) -> Any:
    return KINDS[kind].build()


@contextmanager
def control(pipe: Any) -> Iterator[list[list[Tensor]]]:
    """Collects what the ControlNet is given at every call: latents, time, conditions."""
    calls: list[list[Tensor]] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        calls.append([value.clone() for value in given if isinstance(value, Tensor)])

    handle = pipe.controlnet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_network_that_denoises_is_attached(kind: str) -> None:
    pipe = built(kind)
    assert "controlnet" not in find_networks(pipe, None)
    with attach(pipe, [SOME]):
        assert not {"forward", "_compiled_call_impl"} & vars(pipe.controlnet).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_skips_nothing_gives_the_controlnet_the_very_same_inputs(kind: str) -> None:
    family, pipe = KINDS[kind], built(kind)
    with control(pipe) as plain:
        sample = family.run(pipe)
    with attach(pipe, [EVERY]), control(pipe) as calls:
        assert torch.equal(family.run(pipe), sample)
    assert len(calls) == len(plain) == STEPS
    assert len(plain[0]) >= 3
    assert same(calls, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_the_controlnet_runs_on_every_step_also_where_its_result_is_not_used(kind: str) -> None:
    """The pipeline calls it before the network is asked, so it is neither skipped nor changed."""
    family, pipe = KINDS[kind], built(kind)
    with control(pipe) as plain:
        sample = family.run(pipe)
    with attach(pipe, [SOME]) as run, control(pipe) as calls, counted(pipe, family) as made:
        first = family.run(pipe)
    assert len(calls) == STEPS
    assert len(made) == run.traces[0].network_calls == 3
    assert run.traces[0].computed_steps == (0, 2, STEPS - 1)
    assert same(calls[:2], plain[:2])  # step 1 was the first to be reused, after its ControlNet
    assert not same(calls[2:3], plain[2:3])  # its sample differs, so the next input does
    assert not torch.equal(first, sample)
    with attach(pipe, [SOME]):
        assert torch.equal(family.run(pipe), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_that_ends_early_and_another_strength(kind: str) -> None:
    family, pipe = KINDS[kind], built(kind)
    changes: list[dict[str, Any]] = [
        {"control_guidance_end": 0.5},
        {"controlnet_conditioning_scale": 0.3},
        {},
    ]
    for change in changes:
        expected = family.run(pipe, **change)
        with attach(pipe, [EVERY]):
            assert torch.equal(family.run(pipe, **change), expected)
    fresh = []
    for change in changes:
        with attach(pipe, [SOME]):
            fresh.append(family.run(pipe, **change))
    assert not torch.equal(fresh[0], fresh[1])
    with attach(pipe, [SOME]):
        for change, sample in zip(changes, fresh, strict=True):
            assert torch.equal(family.run(pipe, **change), sample)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("sdxl", "UNet2DConditionModel has no trunk"),
        ("flux", r"FluxTransformer2DModel changes what passes .*ControlNet"),
    ],
)
def test_a_controlnet_adds_between_the_blocks_so_they_are_no_trunk(kind: str, why: str) -> None:
    family, pipe = KINDS[kind], built(kind)
    sample = family.run(pipe)

    def request() -> None:
        with attach(pipe, [SOME], seam="trunk"):
            family.run(pipe)

    with pytest.raises(CapabilityError, match=why):
        request()
    assert torch.equal(family.run(pipe), sample)
