"""Places of networks: every attention and MLP of every tiny family, found by structure alone."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from erta_bench.families import EXACT, INEXACT, judge_places
from erta_bench.shapes_image import ShapesFlux, ShapesUNet
from erta_framework.errors import CapabilityError
from erta_framework.modules import Place, PlaceFinder, Select, find_places, select_places
from erta_integrations.shapes_wan import ShapesWan
from tiny_pipelines import FAMILIES

POOLED = {"mochi"}
"""Families that pool their text by an attention, which is no place."""
CASES = [
    pytest.param(name, marks=pytest.mark.slow if family.slow else ())
    for name, family in FAMILIES.items()
]
EXACT_CASES = [case for case in CASES if case.values[0] not in INEXACT]


@functools.cache
def built(name: str) -> Any:
    return FAMILIES[name].build()


def network_of(name: str) -> nn.Module:
    network = getattr(built(name), FAMILIES[name].inner[0].partition(".")[0])
    return getattr(network, "_orig_mod", network)


def by_path(network: nn.Module) -> dict[str, Place]:
    return {place.path: place for place in find_places(network)}


@pytest.mark.parametrize("name", CASES)
def test_every_attention_and_mlp_that_is_found_runs_once_a_network_call(name: str) -> None:
    assert judge_places(name) == INEXACT.get(name, EXACT)


def test_the_list_of_exceptions_names_families() -> None:
    assert INEXACT.keys() <= FAMILIES.keys()


class AttentionWatch(TorchFunctionMode):
    """Counts attentions that torch computes in a network, inside of a place or outside of all."""

    def __init__(self) -> None:
        super().__init__()
        self.running, self.open, self.inside, self.outside = False, 0, 0, 0

    def start(self, *_: Any) -> None:
        self.running = True

    def stop(self, *_: Any) -> None:
        self.running = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if self.running and func is F.scaled_dot_product_attention:
            self.inside += self.open == 1
            self.outside += self.open != 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EXACT_CASES)
def test_no_attention_is_missed_and_places_come_in_the_order_of_execution(name: str) -> None:
    network, watch = network_of(name), AttentionWatch()
    places = find_places(network)
    seen: list[str] = []

    def enter(place: Place) -> None:
        seen.append(place.path)
        watch.open += place.kind in ("attention", "cross")

    def leave(*_: Any) -> None:
        watch.open -= 1

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(watch.start).remove)
        stack.callback(network.register_forward_hook(watch.stop).remove)
        for place in places:
            first = place.modules[0] if place.kind == "unit" else place.modules[-1]
            module = network.get_submodule(first)
            hook = module.register_forward_pre_hook(lambda *_, place=place: enter(place))
            stack.callback(hook.remove)
            if place.kind in ("attention", "cross"):
                stack.callback(module.register_forward_hook(leave).remove)
        with watch:
            FAMILIES[name].run(built(name), 2)
    assert list(dict.fromkeys(seen)) == [place.path for place in places]
    assert bool(watch.outside) == (name in POOLED)
    assert watch.inside or name == "sana"  # whose linear attention is written out


@pytest.mark.parametrize("name", EXACT_CASES)
def test_paths_are_unique_and_name_modules(name: str) -> None:
    network = network_of(name)
    places = find_places(network)
    assert len({place.path for place in places}) == len(places)
    for place in places:
        assert all(network.get_submodule(path) is not None for path in place.modules)
        assert place.members == () or place.kind in ("unit", "mlp")


def test_cross_attention_is_told_from_attention_by_its_own_flag_before_its_name() -> None:
    motion = by_path(network_of("animatediff"))
    temporal = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn2"  # over frames, twice
    assert motion[temporal].kind == "attention"
    assert motion["down_blocks.0.attentions.0.transformer_blocks.0.attn2"].kind == "cross"
    video = by_path(network_of("ltx2"))
    assert video["transformer_blocks.0.audio_to_video_attn"].kind == "cross"
    assert by_path(network_of("cogvideox"))["transformer_blocks.0.attn1"].kind == "attention"


@pytest.mark.parametrize(
    ("name", "path", "parts"),
    [
        ("flux", "single_transformer_blocks.1.proj_out", ("proj_mlp", "attn", "proj_out")),
        ("hunyuan-video", "single_transformer_blocks.0.proj_out", ("proj_mlp", "attn", "proj_out")),
        ("prx", "blocks.0.down_proj", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_an_mlp_without_a_module_is_its_output_with_what_feeds_it(
    name: str, path: str, parts: tuple[str, ...]
) -> None:
    place = by_path(network_of(name))[path]
    block = path.rpartition(".")[0]
    assert place.kind == "mlp"
    assert place.members == tuple(f"{block}.{part}" for part in parts)


def test_depth_counts_blocks_over_all_lists_in_the_order_of_execution() -> None:
    flux = [p for p in find_places(network_of("flux")) if p.kind == "block"]
    assert [(p.path, p.depth, p.stack) for p in flux] == [
        ("transformer_blocks.0", 0, "transformer_blocks"),
        ("transformer_blocks.1", 1, "transformer_blocks"),
        ("single_transformer_blocks.0", 2, "single_transformer_blocks"),
        ("single_transformer_blocks.1", 3, "single_transformer_blocks"),
    ]
    latte = {p.path: p.depth for p in find_places(network_of("latte")) if p.kind == "block"}
    assert latte == {  # spatial and temporal blocks in turns
        "transformer_blocks.0": 0,
        "temporal_transformer_blocks.0": 1,
        "transformer_blocks.1": 2,
        "temporal_transformer_blocks.1": 3,
    }
    for place in find_places(network_of("latte")):
        assert place.depth == latte[".".join(place.path.split(".")[:2])]


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "wan-unipc"])
def test_the_last_depth_of_blocks_is_that_of_the_last_block(name: str) -> None:
    # stages of a UNet without attention lie behind it
    network = getattr(built(name), FAMILIES[name].inner[0].partition(".")[0])

    def select(depth: str, pick: str = ":", *, block: bool = False) -> tuple[str, ...]:
        kind: Any = ("block",) if block else ("attention", "cross", "mlp")
        found = select_places(network, Select(kind=kind, depth=depth, pick=pick), PlaceFinder())
        return tuple(place.path for place in found)

    (last,) = select("-1:", block=True)
    assert (last,) == select(":", "-1", block=True)
    inside = [path for path in select(":") if path.startswith(f"{last}.")]
    assert inside == [*select("-1:")]
    assert [*select(":-1"), *inside] == [*select(":")]


def test_a_text_refiner_is_outside_of_the_trunk() -> None:
    places = find_places(network_of("hunyuan-video"))
    refiner = [p for p in places if p.stack == "context_embedder.token_refiner.refiner_blocks"]
    assert {p.kind for p in refiner} == {"block", "attention", "mlp"}
    assert {p.depth for p in refiner} == {-1}
    assert min(p.depth for p in places if p not in refiner) == 0


def test_stages_and_units_of_a_unet() -> None:
    places = by_path(network_of("animatediff"))
    assert {path: p.kind for path, p in places.items() if p.kind in ("down", "mid", "up")} == {
        "down_blocks.0": "down",
        "down_blocks.1": "down",
        "mid_block": "mid",
        "up_blocks.0": "up",
        "up_blocks.1": "up",
    }
    assert places["up_blocks.0.unit:1"].members == (
        "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.1",
        "up_blocks.0.motion_modules.1",
    )
    assert "mid_block.unit:0" not in places


def on_meta(cls: str, **config: Any) -> nn.Module:
    """A network of full size without weights."""
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, cls)(**config)
    return network


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_span_over_the_skip_connections_of_a_unet_is_refused(name: str) -> None:
    """What is left out would feed them: the samples would be NaN."""
    finder, network = PlaceFinder(), FAMILIES[name].build().unet
    with pytest.raises(CapabilityError, match=r"skip connections of the UNet.*by_list=True"):
        select_places(network, Select(kind=("block",), span=True), finder)
    spans = select_places(network, Select(kind=("block",), span=True, by_list=True), finder)
    lists = [place.stack for place in finder.find_places(network) if place.kind == "block"]
    assert [place.stack for place in spans] == list(dict.fromkeys(lists))
    one = Select(kind=("block",), span=True, stack="mid_block.*")
    assert len(select_places(network, one, finder)) == 1


def test_the_mlp_of_a_norm_is_not_the_mlp_of_its_block() -> None:
    kinds = Counter(place.kind for place in find_places(on_meta("Kandinsky3UNet")))
    assert kinds["mlp"] == kinds["block"] == kinds["cross"] == 24


def test_blocks_before_the_stages_of_a_unet_are_outside_of_its_trunk() -> None:
    places = find_places(on_meta("UNet3DConditionModel"))
    before = [place for place in places if place.path.startswith("transformer_in.")]
    assert {place.depth for place in before} == {-1}
    assert sum(place.kind == "block" and place.depth >= 0 for place in places) == 32


@pytest.mark.parametrize(
    ("cls", "counts"),
    [
        ("FluxTransformer2DModel", {"block": 57, "attention": 57, "mlp": 76}),
        ("WanTransformer3DModel", {"block": 40, "attention": 40, "cross": 40, "mlp": 40}),
    ],
)
def test_networks_of_full_size(cls: str, counts: dict[str, int]) -> None:
    places = find_places(on_meta(cls))
    assert Counter(place.kind for place in places) == counts
    assert [p.depth for p in places if p.kind == "block"] == list(range(counts["block"]))


@pytest.mark.parametrize(
    ("model", "prefix", "blocks"),
    [(ShapesWan, "transformer", 5), (ShapesFlux, "transformer", 5), (ShapesUNet, "unet", 7)],
)
def test_a_module_that_holds_the_network(
    model: Callable[[], nn.Module], prefix: str, blocks: int
) -> None:
    whole = model()
    inner = getattr(whole, prefix)
    outer, own = find_places(whole), find_places(inner)
    assert [p.path for p in outer] == [f"{prefix}.{p.path}" for p in own]
    assert [p.modules for p in outer] == [
        tuple(f"{prefix}.{path}" for path in p.modules) for p in own
    ]
    assert [p.depth for p in outer] == [p.depth for p in own]
    assert sum(p.kind == "block" for p in own) == blocks


def test_a_compiled_network_has_the_places_of_its_module() -> None:
    network = network_of("wan-euler")
    compiled = torch.compile(network, backend="eager")
    assert [p.path for p in find_places(compiled)] == [p.path for p in find_places(network)]


@pytest.mark.parametrize("name", ["wan-euler", "flux", "sd"])
def test_an_adapter_adds_no_places(name: str) -> None:
    peft = pytest.importorskip("peft")
    network: Any = FAMILIES[name].build().components[FAMILIES[name].inner[0].partition(".")[0]]
    before = [(p.path, p.kind, p.modules) for p in find_places(network)]
    names = ["to_q", "proj_mlp", "proj_out", "net.0.proj", "conv1"]
    network.add_adapter(peft.LoraConfig(r=2, target_modules=names))
    assert [(p.path, p.kind, p.modules) for p in find_places(network)] == before


class Heads(nn.Module):
    """An attention whose class does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))


class Layer(nn.Module):
    """A block that runs its MLP first, though it registers it last."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Heads()
        self.act_mlp = nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(4, 8), self.act_mlp, nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reader(self.mlp(x))
        return y


class Own(nn.Module):
    """A network that is no model of diffusers, and runs its second list first, in a method."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.ModuleList(Layer() for _ in range(2))
        self.early = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        for layer in self.early:
            x = layer(x)
        for layer in self.late:
            x = layer(x)
        return x


def test_a_network_of_ones_own() -> None:
    assert [(p.path, p.kind, p.depth) for p in find_places(Own())] == [
        (f"{stack}.{index}{part}", kind, depth + index)
        for stack, depth in (("early", 0), ("late", 2))
        for index in range(2)
        for part, kind in (("", "block"), (".mlp", "mlp"), (".reader", "attention"))
    ]


def test_a_network_without_places_says_what_it_has() -> None:
    network = nn.Module()
    network.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(CapabilityError, match=r"Module has no places.*layers \(2 x Linear\)"):
        find_places(network)
    with pytest.raises(CapabilityError, match="its lists are: none"):
        find_places(nn.Linear(2, 2))
