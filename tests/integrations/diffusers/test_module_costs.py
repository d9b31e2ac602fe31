"""What places cost: FLOPs counted once, shares of calls that leave places out, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from erta_framework.errors import CapabilityError, InputError
from erta_framework.modules import (
    check_memory,
    count_state_bytes,
    find_places,
    format_bytes,
    measure,
    measure_costs,
    measure_once,
    parse_bytes,
)
from erta_integrations.shapes_wan import ShapesWan
from tiny_pipelines import drawn


@pytest.fixture(scope="module")
def wan() -> nn.Module:
    network: nn.Module = ShapesWan().transformer.eval()
    return network


def call(network: nn.Module, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        output: Tensor = network(
            hidden_states=drawn(batch, 3, 5, 16, 16).to(dtype),
            timestep=torch.full((batch,), 500),
            encoder_hidden_states=drawn(batch, 6, 64).to(dtype),
            return_dict=False,
        )[0]
    return output


@contextmanager
def left_out(network: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Modules that return what they returned last, and compute nothing."""
    kept: dict[str, Any] = {}
    modules = {path: network.get_submodule(path) for path in paths}
    handles = [
        module.register_forward_hook(lambda _, __, output, path=path: kept.update({path: output}))
        for path, module in modules.items()
    ]
    call(network)
    for handle in handles:
        handle.remove()
    for path, module in modules.items():
        vars(module)["forward"] = lambda *_, path=path, **__: kept[path]
    try:
        yield
    finally:
        for module in modules.values():
            del vars(module)["forward"]


PLANS = {
    "nothing": lambda place: False,
    "attention": lambda place: place.kind in ("attention", "cross"),
    "mlp": lambda place: place.kind == "mlp",
    "blocks": lambda place: place.kind == "block" and place.depth > 0,
    "blocks and what is in them": lambda place: place.depth in (1, 3),
    "a block, other attention": lambda place: place.path == "blocks.0" or place.kind == "cross",
}


@pytest.mark.parametrize("plan", PLANS)
def test_the_share_of_a_plan_is_its_measured_flops(wan: nn.Module, plan: str) -> None:
    idle = [path for place in find_places(wan) if PLANS[plan](place) for path in place.modules]
    full = measure(wan, lambda: call(wan))
    with left_out(wan, idle):
        planned = measure(wan, lambda: call(wan))
    assert full.total - full.count_idle(idle) == planned.total
    assert full.find_share(idle) == planned.total / full.total
    assert bool(idle) == (planned.total < full.total)


def test_shares_are_of_the_network_itself() -> None:
    whole = ShapesWan().eval()
    inner = measure_costs(whole.transformer, lambda: call(whole.transformer))
    assert inner[""] == 1.0

    def run_more() -> Tensor:
        return (whole.words.weight @ drawn(64, 1)).sum() + call(whole.transformer)

    assert measure_costs(whole.transformer, run_more) == inner
    own_forward = measure_costs(
        whole.transformer,
        lambda: whole.transformer.forward(
            drawn(2, 3, 5, 16, 16), torch.full((2,), 500), drawn(2, 6, 64)
        ),
    )
    assert own_forward == inner


def test_attention_is_counted_on_cpus_too(wan: nn.Module) -> None:
    costs = measure(wan, lambda: call(wan))
    tokens, words, width, batch = 5 * 4 * 4, 6, 160, 2
    linear = 2 * batch * tokens * width * width
    assert costs.flops["blocks.0.attn1.to_q"] == linear
    assert costs.flops["blocks.0.attn1"] == 4 * linear + 4 * batch * tokens * tokens * width
    text = 2 * 2 * batch * words * width * width
    assert costs.flops["blocks.0.attn2"] == 2 * linear + text + 4 * batch * tokens * words * width


def test_costs_scale_with_the_batch_and_are_learned_once_a_shape(wan: nn.Module) -> None:
    runs: list[int] = []

    def run(batch: int) -> Callable[[], Tensor]:
        def make() -> Tensor:
            runs.append(batch)
            return call(wan, batch)

        return make

    first, fresh = measure_once(wan, ("test", 1), run(1))
    assert fresh
    again, fresh = measure_once(wan, ("test", 1), run(1))
    assert again is first
    assert not fresh
    double, _ = measure_once(wan, ("test", 2), run(2))
    assert runs == [1, 2]
    assert double.flops["blocks.0"] == 2 * first.flops["blocks.0"]
    assert measure_once(torch.compile(wan, backend="eager"), ("test", 2), run(2))[0] is double


def test_nothing_stays_on_the_network_and_compiled_blocks_are_counted() -> None:
    network = ShapesWan().transformer.eval()
    plain = measure(network, lambda: call(network))
    for block in network.blocks:
        block.compile(backend="eager", fullgraph=True)
    call(network)
    compiled = measure(network, lambda: call(network))
    assert compiled.flops == plain.flops
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    with pytest.raises(ZeroDivisionError):
        measure(network, lambda: call(network)[1 // 0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_run_that_does_not_call_the_network_has_no_costs(wan: nn.Module) -> None:
    with pytest.raises(
        CapabilityError, match="WanTransformer3DModel cannot be measured: it was not"
    ):
        measure(wan, lambda: drawn(3, 3) @ drawn(3, 3))
    identity = nn.Identity()
    with pytest.raises(CapabilityError, match="Identity cannot be measured: it made no matrix"):
        measure(identity, lambda: identity(drawn(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_bytes_are_those_of_the_kept_outputs(dtype: torch.dtype) -> None:
    network = ShapesWan().transformer.eval().to(dtype)
    costs = measure(network, lambda: call(network, dtype=dtype))
    places = [place for place in find_places(network) if place.kind != "block"]
    one = 2 * 80 * 160 * dtype.itemsize  # samples, tokens, channels
    assert count_state_bytes(places, costs) == 15 * one
    assert count_state_bytes(places, costs, branches=2, keeps=3) == 6 * 15 * one


def test_an_output_that_was_not_measured_has_no_size(wan: nn.Module) -> None:
    costs = measure(wan, lambda: call(wan))
    strange = find_places(ShapesWan())[0]
    with pytest.raises(InputError, match=r"transformer\.blocks\.0 did not run"):
        count_state_bytes([strange], costs)


@pytest.mark.parametrize(
    ("size", "number"),
    [("2GiB", 2**31), ("1.5 kib", 1536), ("10", 10), (7, 7), ("3MB", 3 * 10**6), ("4B", 4)],
)
def test_sizes(size: str | int, number: int) -> None:
    assert parse_bytes(size) == number


@pytest.mark.parametrize("size", ["", "GiB", "-1", "2 GiBs", "1e9", True])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(InputError, match="give bytes, or a size such as"):
        parse_bytes(size)


@given(st.integers(0, 2**50))
def test_a_written_size_is_never_smaller(size: int) -> None:
    again = parse_bytes(format_bytes(size))
    assert size <= again <= size * 1.011 + 11


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_bound_names_what_would_be_enough(needed: int, allowed: int) -> None:
    if needed <= allowed:
        check_memory(needed, allowed, "policy")
        return
    with pytest.raises(CapabilityError, match="policy would keep") as raised:
        check_memory(needed, allowed, "policy")
    enough = str(raised.value).partition("memory=")[2].partition(",")[0]
    check_memory(needed, enough, "policy")
