"""Offloading and layerwise casting: hooks of accelerate and diffusers, before and after attach.

No accelerator is needed: weights move from the CPU to the CPU, through the same hooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import (
    AlignDevicesHook,
    add_hook_to_module,
    attach_align_device_hook,
    remove_hook_from_module,
)
from torch import Tensor, nn

pytest.importorskip("diffusers")
from diffusers.hooks import HookRegistry, ModelHook

from erta_framework.errors import ConflictError
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.network import Patch
from erta_integrations.diffusers.network._patching import iter_hooks
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES, Family, counted

EVERY = SkipPolicy(every=1)
SOME = SkipPolicy(steps=(0, 2, 5))
CPU = torch.device("cpu")
WAN = FAMILIES["wan-euler"]


def network_of(pipe: Any) -> nn.Module:
    return getattr(pipe, "transformer", None) or pipe.unet  # type: ignore[no-any-return]


def model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def sequential_offload(pipe: Any) -> None:
    """As `enable_sequential_cpu_offload` does it, whose bookkeeping fails from CPU to CPU."""
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
            add_hook_to_module(network, AlignDevicesHook(io_same_device=True), append=True)
            attach_align_device_hook(network, CPU, offload=True, weights_map=weights)


def align_devices(pipe: Any) -> None:
    add_hook_to_module(network_of(pipe), AlignDevicesHook(execution_device="cpu"))


def group_offload_by_block(pipe: Any) -> None:
    network_of(pipe).enable_group_offload(  # type: ignore[operator]
        CPU, CPU, "block_level", num_blocks_per_group=1
    )


def group_offload_by_leaf(pipe: Any) -> None:
    pipe.enable_group_offload(CPU, CPU, "leaf_level")


def layerwise_casting(pipe: Any) -> None:
    network_of(pipe).enable_layerwise_casting(  # type: ignore[operator]
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    )


PREPARE = [
    model_offload,
    sequential_offload,
    align_devices,
    group_offload_by_block,
    group_offload_by_leaf,
    layerwise_casting,
]
CASES = [
    ("wan-euler", "latent"),
    ("flux", "trunk"),
    pytest.param("wan-euler", "trunk", marks=pytest.mark.slow),
    pytest.param("sd", "latent", marks=pytest.mark.slow),
]


@functools.cache
def alone(name: str, seam: str, casts: bool) -> tuple[Tensor, Tensor]:
    """Samples in full and with `SOME` of a pipeline of its own, without any offloading."""
    family = FAMILIES[name]
    pipe = family.build()
    if casts:
        layerwise_casting(pipe)
    full = family.run(pipe)
    with attach(pipe, [SOME], seam=seam):
        return full, family.run(pipe)


def check(family: Family, pipe: Any, seam: str, expected: tuple[Tensor, Tensor]) -> None:
    """A null run is bit-identical, and a schedule makes its calls, twice."""
    full, skipped = expected
    with attach(pipe, [EVERY], seam=seam):
        assert torch.equal(family.run(pipe), full)
    with attach(pipe, [SOME], seam=seam) as run, counted(pipe, family) as made:
        assert torch.equal(family.run(pipe), skipped)
        assert torch.equal(family.run(pipe), skipped)
    assert [trace.network_calls for trace in run.traces] == [3 * family.calls] * 2
    heads = 3 if seam == "latent" else 6  # the head still runs where only the blocks are skipped
    assert len(made) == 2 * heads * family.calls


def attributes(pipe: Any) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in network_of(pipe).modules()]


def patches_left(pipe: Any) -> Iterator[object]:
    """Patches that something of the network still holds."""
    for module in network_of(pipe).modules():
        yield from (value for value in vars(module).values() if isinstance(value, Patch))
        held = (getattr(holder, name) for holder, name in iter_hooks(module))
        yield from (value for value in held if isinstance(value, Patch))


@pytest.mark.parametrize("prepare", PREPARE)
@pytest.mark.parametrize(("name", "seam"), CASES)
def test_enabled_before_attach(name: str, seam: str, prepare: Callable[[Any], None]) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    prepare(pipe)
    expected = alone(name, seam, prepare is layerwise_casting)
    assert torch.equal(family.run(pipe), expected[0])
    check(family, pipe, seam, expected)
    before = attributes(pipe)
    run = attach(pipe, [SOME], seam=seam).__enter__()
    assert any(patches_left(pipe))
    run.detach()
    for earlier, now in zip(before, attributes(pipe), strict=True):
        assert now.keys() == earlier.keys()
        assert all(now[key] is value for key, value in earlier.items())
    assert torch.equal(family.run(pipe), expected[0])


@pytest.mark.parametrize("prepare", PREPARE)
@pytest.mark.parametrize(("name", "seam"), CASES)
def test_enabled_while_attached(name: str, seam: str, prepare: Callable[[Any], None]) -> None:
    family = FAMILIES[name]
    pipe = family.build()
    full, skipped = alone(name, seam, prepare is layerwise_casting)
    with attach(pipe, [SOME], seam=seam) as run:
        family.run(pipe)
        prepare(pipe)
        with pytest.raises(ConflictError, match="has an engine attached already"):
            attach(pipe, [SOME], seam=seam).__enter__()
        with counted(pipe, family) as made:
            for _ in range(2):
                assert torch.equal(family.run(pipe), skipped)
    assert [trace.network_calls for trace in run.traces] == [3 * family.calls] * 3
    assert len(made) == 2 * (3 if seam == "latent" else 6) * family.calls
    assert not any(patches_left(pipe))  # the hooks stay, and hold the original
    assert torch.equal(family.run(pipe), full)
    assert len(run.traces) == 3
    check(family, pipe, seam, (full, skipped))


def remove_accelerate(pipe: Any) -> None:
    remove_hook_from_module(network_of(pipe), recurse=True)


def remove_group_offload(pipe: Any) -> None:
    network = network_of(pipe)
    network._diffusers_hook.remove_hook("group_offloading", recurse=True)  # type: ignore[union-attr]
    for module in network.modules():
        vars(module).pop("_diffusers_hook", None)


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize(
    ("prepare", "remove"),
    [(align_devices, remove_accelerate), (group_offload_by_block, remove_group_offload)],
)
@pytest.mark.parametrize("attached_at", ["enable", "remove"])
def test_hooks_that_come_or_go_while_attached(
    seam: str,
    prepare: Callable[[Any], None],
    remove: Callable[[Any], None],
    attached_at: str,
) -> None:
    """Whichever ends first, nothing of the engine is left and the other one keeps working."""
    pipe = WAN.build()
    full, skipped = alone("wan-euler", seam, False)
    if attached_at == "enable":
        with attach(pipe, [SOME], seam=seam):
            prepare(pipe)
            assert torch.equal(WAN.run(pipe), skipped)
        remove(pipe)
    else:
        prepare(pipe)
        with attach(pipe, [SOME], seam=seam):
            assert torch.equal(WAN.run(pipe), skipped)
            remove(pipe)
            assert torch.equal(WAN.run(pipe), skipped)
    assert not any(patches_left(pipe))
    assert torch.equal(WAN.run(pipe), full)
    check(WAN, pipe, seam, (full, skipped))


def test_attached_before_and_removed_before_detach_leaves_the_class_forward() -> None:
    pipe = WAN.build()
    WAN.run(pipe)
    before = attributes(pipe)
    with attach(pipe, [SOME]):
        align_devices(pipe)
        WAN.run(pipe)
        remove_accelerate(pipe)
        WAN.run(pipe)
    assert not any(patches_left(pipe))
    assert [now.keys() - {"forward"} for now in attributes(pipe)] == [e.keys() for e in before]
    assert pipe.transformer.forward.__func__ is type(pipe.transformer).forward


class TakesItselfOff(ModelHook):
    """A hook that removes itself after its first call, as those do that trace for prefetching."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        module._diffusers_hook.remove_hook("once", recurse=False)  # type: ignore[union-attr,operator]
        return output


@pytest.mark.parametrize("seam", ["latent", "trunk"])
@pytest.mark.parametrize("where", ["network", "block"])
def test_hooks_that_take_themselves_off_during_a_request(seam: str, where: str) -> None:
    """Removing them puts back what `forward` was before them, which is not ours."""
    pipe = WAN.build()
    full, skipped = alone("wan-euler", seam, False)
    for policy, expected in ((EVERY, full), (SOME, skipped)):
        module = pipe.transformer if where == "network" else pipe.transformer.blocks[0]
        HookRegistry.check_if_exists_or_initialize(module).register_hook(TakesItselfOff(), "once")
        with attach(pipe, [policy], seam=seam) as run:
            for _ in range(2):
                assert torch.equal(WAN.run(pipe), expected)
        calls = 12 if policy is EVERY else 6
        assert [trace.network_calls for trace in run.traces] == [calls] * 2
        assert [len(list(trace.calls())) for trace in run.traces] == [12, 12]
        assert not any(patches_left(pipe))


@pytest.mark.parametrize("prepare", [model_offload, group_offload_by_block])
def test_both_networks_of_a_pipeline_are_offloaded(prepare: Callable[[Any], None]) -> None:
    family = FAMILIES["wan22"]
    pipe = family.build()
    with attach(pipe, [SOME]):
        expected = family.run(pipe)
    prepare(pipe)
    with attach(pipe, [SOME]) as run, counted(pipe, family) as made:
        for _ in range(2):
            assert torch.equal(family.run(pipe), expected)
    assert {call.model for call in run.traces[1].calls()} == {"transformer", "transformer_2"}
    assert len(made) == sum(trace.network_calls for trace in run.traces)


def test_an_error_in_an_offloaded_network_leaves_it_usable() -> None:
    pipe = WAN.build()
    group_offload_by_block(pipe)
    _, skipped = alone("wan-euler", "trunk", False)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with attach(pipe, [SOME], seam="trunk"):
        handle = pipe.transformer.blocks[1].ffn.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            WAN.run(pipe)
        handle.remove()
        assert torch.equal(WAN.run(pipe), skipped)
