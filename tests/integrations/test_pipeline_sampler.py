"""Every bundled model through its own unmodified pipeline, by one sampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from erta_bench.other_caches import bridge
from erta_bench.shapes_image import ShapesFlux, ShapesUNet
from erta_framework.config import build_policies
from erta_framework.errors import CapabilityError, InputError
from erta_framework.testing import GaussianMixtureFlow
from erta_integrations.diffusers.bundled import (
    InPipeline,
    PipelineSampler,
    pipeline,
    pipeline_model,
    request,
    samples_of,
)
from erta_integrations.shapes_wan import ShapesWan
from erta_policies.ertacache import ERTACache, ResidualProfiler, ResidualReuse, SkipPolicy
from erta_policies.meancache import MeanCacheProfiler

STEPS, SEED = 5, 11
KINDS = (ShapesWan, ShapesFlux, ShapesUNet)
PAIRS = [(kind, name) for kind in KINDS for name in kind.pipeline_model().schedulers]
ONE_CALL = [(kind, name) for kind, name in PAIRS if name != "heun"]
"""Where a step of the request is a step of the grid."""
PIPELINES = {
    ShapesWan: diffusers.WanPipeline,
    ShapesFlux: diffusers.FluxPipeline,
    ShapesUNet: diffusers.StableDiffusionPipeline,
}
FIRST = {ShapesWan: "patch_embedding", ShapesFlux: "x_embedder", ShapesUNet: "conv_in"}
"""The layer of each network that latents meet first: it runs when the network really runs."""
SKIP = SkipPolicy(steps=(0, 2, 4))
quiet = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def fresh(kind: type[InPipeline]) -> Any:
    """A model with random weights: what is tested holds for any."""
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Batch sizes of the real network calls."""
    network, seen = getattr(model, model.pipeline_model().network), list[int]()
    handle = getattr(network, FIRST[type(model)]).register_forward_pre_hook(
        lambda _, args: seen.append(len(args[0]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def calls_of(kind: type[InPipeline], steps: int) -> list[int]:
    """Batch sizes of so many computed steps of two samples with two branches."""
    return [4] * steps if kind.pipeline_model().batched else [2] * (2 * steps)


@quiet
@pytest.mark.parametrize(("kind", "scheduler"), PAIRS)
def test_without_policies_it_is_the_bare_pipeline(kind: type[InPipeline], scheduler: str) -> None:
    model = fresh(kind)
    prompts = model.demo_prompts()[1][:2]
    pipe = pipeline(model, scheduler)
    assert type(pipe) is PIPELINES[kind]
    asked = request(model, prompts, seeds=[SEED, SEED + 1], num_steps=STEPS)
    with counted(model) as plain_calls:
        plain = samples_of(model, pipe(**asked))
    with counted(model) as calls:
        sampler = model.pipeline_sampler(scheduler=scheduler, num_steps=STEPS)
        found = sampler.sample(model, prompts, seed=SEED)
    assert plain.shape == (2, *model.latent_shape)
    assert torch.equal(found.samples, plain)
    made = 2 * STEPS - 1 if scheduler == "heun" else STEPS
    assert plain_calls == calls == calls_of(kind, made)
    assert sampler.facts["loop"].startswith(f"{type(pipe).__name__} of diffusers")
    assert sampler.facts["scheduler"].startswith(type(pipe.scheduler).__name__)


@quiet
@pytest.mark.parametrize(("kind", "scheduler"), ONE_CALL)
def test_a_schedule_makes_exactly_its_calls(kind: type[InPipeline], scheduler: str) -> None:
    model = fresh(kind)
    prompts = model.demo_prompts()[1][:2]
    sampler = model.pipeline_sampler([SKIP, ResidualReuse()], scheduler=scheduler, num_steps=STEPS)
    with counted(model) as calls:
        found = sampler.sample(model, prompts, seed=SEED)
    assert calls == calls_of(kind, 3)
    assert found.traces[0].computed_steps == (0, 2, 4)
    assert found.traces[0].network_calls == len(calls)
    assert found.traces[0].network_samples == sum(calls) == 2 * 2 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibration_serves_a_policy(kind: type[InPipeline]) -> None:
    model = fresh(kind)
    few, held_out = model.demo_prompts()
    with counted(model) as calls:
        sampler = model.pipeline_sampler(num_steps=STEPS)
        profile = sampler.calibrate(model, few[:2], seed=70, profiler=ResidualProfiler())
    assert calls == calls_of(kind, STEPS)
    policies = [ERTACache(profile=profile, calls=3)]
    found = model.pipeline_sampler(policies, num_steps=STEPS).sample(model, held_out[:1])
    assert len(found.traces[0].computed_steps) <= 3


def test_schedulers_are_those_of_the_model() -> None:
    assert {kind.pipeline_model().default for kind in KINDS} == {"flow_euler", "ddim"}
    for kind in KINDS:
        assert {"unipc", "dpmpp"} < set(kind.pipeline_model().schedulers)
    with pytest.raises(InputError, match=r"'ddim' is unknown to shapes-flux; give flow_euler or"):
        fresh(ShapesFlux).pipeline_sampler(scheduler="ddim")


@quiet
def test_every_flow_scheduler_of_shapes_flux_has_the_same_shift() -> None:
    """`FluxPipeline` hands over a shift of its own, which must not move the grid."""
    model = fresh(ShapesFlux)
    grids = {}
    for name in ("unipc", "dpmpp"):
        pipe = pipeline(model, name)
        pipe(**request(model, ["a red circle left"], seeds=[0], num_steps=STEPS))
        grids[name] = pipe.scheduler.sigmas
    assert torch.allclose(grids["unipc"], grids["dpmpp"], atol=2e-3)


def test_models_that_do_not_fit_are_refused() -> None:
    sampler = fresh(ShapesFlux).pipeline_sampler(num_steps=2)
    with pytest.raises(InputError, match="is ShapesUNet; this pipeline runs ShapesFlux"):
        sampler.sample(fresh(ShapesUNet), ["a red circle left"])
    with pytest.raises(InputError, match="GaussianMixtureFlow does not say how it runs"):
        pipeline_model(GaussianMixtureFlow())


def test_what_the_scheduler_cannot_do_is_refused_early() -> None:
    with pytest.raises(CapabilityError, match=r"requires first_order, velocity, which DDIM"):
        PipelineSampler([MeanCacheProfiler()], through=ShapesUNet.pipeline_model(), num_steps=STEPS)


def test_a_cache_that_is_switched_off_leaves_the_network_as_it_was() -> None:
    pytest.importorskip("cache_dit")
    model = fresh(ShapesFlux)
    before = [dict(vars(part)) for part in model.transformer.modules()]
    asked = request(model, ["a red circle left"], seeds=[0], num_steps=2)
    pipe = pipeline(model)
    plain = samples_of(model, pipe(**asked))
    order = [name for name, _ in model.transformer.named_modules()]
    with bridge(pipe, "cache-dit", Fn_compute_blocks=1, Bn_compute_blocks=0) as run:
        pipe(**asked)
    assert run.traces[0].steps
    for part, own in zip(model.transformer.modules(), before, strict=True):
        assert vars(part).get("forward") is own.get("forward")
    assert not hasattr(model.transformer, "_is_patched")
    assert [name for name, _ in model.transformer.named_modules()] == order
    again = request(model, ["a red circle left"], seeds=[0], num_steps=2)
    assert torch.equal(samples_of(model, pipe(**again)), plain)
    with bridge(pipe, "FirstBlockCache", threshold=0.1) as run:  # it looks for the first block
        pipe(**request(model, ["a red circle left"], seeds=[0], num_steps=2))
    assert run.forwards == [4]


@quiet
@pytest.mark.parametrize(
    ("kind", "seam"), [*((kind, "latent") for kind in KINDS), (ShapesWan, "trunk")]
)
def test_modules_are_reused_within_a_bound(kind: type[InPipeline], seam: str) -> None:
    model = fresh(kind)
    at = build_policies(
        [
            {
                "at": {
                    "sites": {"kind": ["attention", "mlp"]},
                    "when": {"refresh_interval": {"interval": 2, "first": 1}},
                }
            }
        ]
    )

    def sample(**options: Any) -> Any:
        sampler = model.pipeline_sampler(at, num_steps=STEPS, seam=seam, **options)
        return sampler.sample(model, ["red", "blue"], seed=SEED).traces[0]

    trace = sample()
    assert 0 < trace.work < trace.network_samples
    # what feeds the last module of a fused block is owned, and not kept
    fused = kind is ShapesFlux
    assert 0 < trace.module_bytes <= trace.state_bytes
    assert fused or trace.module_bytes == trace.state_bytes
    assert sample(memory=trace.state_bytes).work == trace.work
    with pytest.raises(CapabilityError, match=r"would keep .* give memory="):
        sample(memory=trace.state_bytes - 1)
