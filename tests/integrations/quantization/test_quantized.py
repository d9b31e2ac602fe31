"""Networks quantised with torchao: places, costs, gates, fingerprints and CacheQuant on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from erta_bench.shapes_image import load_unet
from erta_bench.studies import quantise
from erta_framework import DDIM, Policy, Profile, Sampler
from erta_framework.calibration import describe_quantized
from erta_framework.errors import ProfileMismatchError
from erta_framework.modules import Cut, Select, find_places, measure
from erta_integrations.diffusers import attach
from erta_policies.at import At
from erta_policies.cachequant import CacheQuant, FeatureProfiler
from erta_policies.ertacache import SkipPolicy
from quantized_cases import CONFIGS, build, network_of
from tiny_pipelines import FAMILIES

STEPS = 6
NAMES = ("sd", "wan-euler", "flux")
SPAN = Select(kind=("block",), depth="1:", span=True, by_list=True)
SITES: dict[str, Select | Cut] = {"sd": Cut(), "wan-euler": SPAN, "flux": SPAN}
PAIRS = [
    *(("sd", config) for config in CONFIGS),
    ("wan-euler", "int8 dynamic"),
    ("wan-euler", "4-bit weights"),
    ("flux", "int8 dynamic"),
]


def sample(pipe: Any, name: str, policies: Sequence[Policy] = ()) -> tuple[Tensor, Any]:
    with attach(pipe, list(policies)) as attached:
        latents = FAMILIES[name].run(pipe, STEPS)
    return latents, attached


def calibrate(pipe: Any, name: str, interval: int = 3) -> Profile:
    profiler = FeatureProfiler(sites=SITES[name], interval=interval)
    _, attached = sample(pipe, name, [profiler])
    (profile,) = attached.emitted
    assert isinstance(profile, Profile)
    return profile


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_is_not_quantised_says_nothing(name: str) -> None:
    assert describe_quantized(network_of(build(name))) == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_quantisation_is_told_apart_and_found_again(name: str) -> None:
    found = [describe_quantized(network_of(build(name, config))) for config in CONFIGS]
    assert len({one["quantized"] for one in found}) == len(CONFIGS)
    again = [describe_quantized(network_of(build(name, config))) for config in CONFIGS]
    assert again == found


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_places_and_costs_are_those_of_the_network_before(name: str, config: str) -> None:
    plain, quantised = build(name), build(name, config)
    one, other = network_of(plain), network_of(quantised)
    paths = [(place.path, place.kind, place.members) for place in find_places(one)]
    assert [(place.path, place.kind, place.members) for place in find_places(other)] == paths
    before = measure(one, lambda: FAMILIES[name].run(plain, 1))
    after = measure(other, lambda: FAMILIES[name].run(quantised, 1))
    # a product is a product, whatever its numbers are held in
    assert after.flops == before.flops


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_nothing_reused_changes_no_bit(name: str, config: str) -> None:
    expected = FAMILIES[name].run(build(name, config), STEPS)
    pipe = build(name, config)
    network = network_of(pipe)
    kinds = Select(kind=("attention", "cross", "mlp"))
    every = At(sites=kinds, when=SkipPolicy(every=1))
    found, attached = sample(pipe, name, [every])
    assert torch.equal(found, expected)
    assert attached.traces[0].work == attached.traces[0].network_samples
    assert not torch.equal(expected, FAMILIES[name].run(build(name), STEPS))
    assert describe_quantized(network)


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_the_share_of_work_is_that_of_the_network_before(name: str, config: str) -> None:
    of = "output" if name == "sd" else "residual"
    policy = At(sites=SITES[name], when=SkipPolicy(every=3), of=of)
    works = []
    for pipe in (build(name), build(name, config)):
        counts = {"block": 0}
        block = "mid_block.resnets.0" if name == "sd" else find_block(network_of(pipe))
        inner = network_of(pipe).get_submodule(block)
        inner.register_forward_pre_hook(
            lambda *_, counts=counts: counts.update(block=counts["block"] + 1)
        )
        _, attached = sample(pipe, name, [policy])
        trace = attached.traces[0]
        works.append((trace.work / trace.network_samples, counts["block"], trace.network_calls))
    assert works[0] == works[1]
    assert works[0][0] < 1
    assert works[0][1] < works[0][2]


def find_block(network: Any) -> str:
    """A linear layer inside of the second block, which the span leaves out."""
    block = [place.path for place in find_places(network) if place.kind == "block"][1]
    return next(
        path
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and path.startswith(f"{block}.")
    )


@pytest.mark.parametrize(("name", "config"), PAIRS)
def test_cachequant_calibrates_and_samples_on_the_quantised_network(name: str, config: str) -> None:
    pipe = build(name, config)
    plain = FAMILIES[name].run(pipe, STEPS)
    profile = calibrate(pipe, name)
    assert (
        profile.fingerprint["model.quantized"] == describe_quantized(network_of(pipe))["quantized"]
    )
    null = CacheQuant(profile=profile, interval=1, sites=SITES[name])
    assert torch.equal(sample(pipe, name, [null])[0], plain)
    policy = CacheQuant(profile=profile, interval=3, sites=SITES[name])
    found, attached = sample(pipe, name, [policy])
    trace = attached.traces[0]
    assert found.isfinite().all()
    assert trace.work < trace.network_samples
    # nothing stays
    assert torch.equal(FAMILIES[name].run(pipe, STEPS), plain)


def test_the_own_loop_tells_quantised_networks_apart_too() -> None:
    model = load_unet()
    options: dict[str, Any] = {"num_steps": 4, "solver": DDIM(), "batch_size": 1}

    def calibrate_own() -> Profile:
        profiler = FeatureProfiler(interval=2)
        found = Sampler(**options).calibrate(model, ["a red circle left"], profiler=profiler)
        assert isinstance(found, Profile)
        return found

    before = calibrate_own()
    quantise(model, CONFIGS["int8 weights"])
    after = calibrate_own()
    assert "model.quantized" not in before.fingerprint
    assert after.fingerprint["model.quantized"] == describe_quantized(model)["quantized"]
    policy = CacheQuant(profile=before, interval=2)
    with pytest.raises(ProfileMismatchError, match=r"model\.quantized: profile 'nothing'"):
        Sampler([policy], **options).sample(model, ["a red circle left"])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_profile_of_another_quantisation_is_refused(config: str) -> None:
    profile = calibrate(build("sd"), "sd")
    policy = CacheQuant(profile=profile, interval=3)
    pipe = build("sd", config)
    with pytest.raises(ProfileMismatchError, match=r"model.quantized: profile 'nothing'"):
        sample(pipe, "sd", [policy])
    allowed = CacheQuant(profile=profile, interval=3, allow=("model.quantized",))
    assert sample(pipe, "sd", [allowed])[0].isfinite().all()
