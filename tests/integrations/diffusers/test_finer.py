"""Exact solutions of the requests of unmodified pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from erta_bench.shapes_image import ShapesFlux, ShapesUNet
from erta_bench.shapes_image._unet import NOISE
from erta_framework import CFG, Sampler
from erta_framework.calibration import Solution
from erta_framework.errors import CapabilityError, ConflictError, InputError
from erta_framework.metrics import psnr
from erta_framework.sampling import DDIM, FlowEuler, solve
from erta_integrations.diffusers import attach, solve_pipeline
from erta_integrations.diffusers.bundled import InPipeline, pipeline, request
from erta_integrations.shapes_wan import ShapesWan
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import EndToEndProfiler, FittedReuse, FittedTable

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"  # schedulers of diffusers, NumPy 2
)
STEPS, SEED = 3, 11
FIRST: dict[type[InPipeline], str] = {ShapesFlux: "x_embedder", ShapesUNet: "conv_in"}
"""The layer of each network that latents meet first: it runs when the network really runs."""


def fresh(kind: type[InPipeline]) -> Any:
    """A model with random weights: what is tested holds for any."""
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> Any:
    return fresh(ShapesUNet)


def solve_with(pipe: Any, model: Any) -> Solution:
    return solve_pipeline(pipe, lambda: pipe(**ask(model)), substeps=8)


def ask(model: Any, **options: Any) -> dict[str, Any]:
    prompts = model.demo_prompts()[1][:1]
    return request(model, prompts, seeds=[SEED], num_steps=STEPS, **options)


@pytest.mark.parametrize("kind", [ShapesWan, ShapesFlux, ShapesUNet])
def test_it_is_the_solution_of_the_own_loop(kind: type[InPipeline]) -> None:
    model, calls = fresh(kind), list[int]()
    prompts = model.demo_prompts()[1][:2]
    network = getattr(model, kind.pipeline_model().network)
    sampler = model.pipeline_sampler(num_steps=STEPS, batch_size=1)
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    found = sampler.solve(model, prompts, seed=SEED, substeps=4)
    handle.remove()
    branches = 1 if kind.pipeline_model().batched else 2
    assert len(calls) == len(prompts) * branches * found.calls == 2 * branches * STEPS * 6
    solver = DDIM() if kind is ShapesUNet else FlowEuler()
    # the own loop has sigmas of its own for DDIM, those of the pipeline otherwise
    sigmas = None if kind is ShapesUNet else found.sigmas
    own = Sampler(solver=solver, guidance=CFG(scale=3.0), num_steps=STEPS, sigmas=sigmas)
    wanted = solve(own, model, prompts, seed=SEED, substeps=4)
    assert found.samples.shape == (2, *model.latent_shape)
    assert float(psnr(found.samples, wanted.samples).min()) > 100
    assert found.error == pytest.approx(wanted.error, rel=1e-3)


@pytest.mark.parametrize("kind", [ShapesFlux, ShapesUNet])
def test_it_begins_and_lies_where_the_run_does(kind: type[InPipeline]) -> None:
    model = fresh(kind)
    pipe = pipeline(model)
    scheduler = pipe.scheduler
    found = solve_pipeline(pipe, lambda: pipe(**ask(model)), substeps=2)
    assert pipe.scheduler is scheduler
    seen: list[Any] = []

    def watch(_: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return {}

    with attach(pipe, SkipPolicy(every=1)) as run:
        pipe(**ask(model), callback_on_step_end=watch)
    assert found.latents.shape[2:] == seen[0].shape[1:]
    found.require_sigmas([*(step.start for step in run.traces[0].steps), 0.0])
    assert torch.equal(found.find(found.latents[:, 0]), found.latents)


def test_the_same_ode_has_the_same_solution_under_other_schedulers(unet: Any) -> None:
    ends = []
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        pipe = pipeline(unet)
        off = {"clip_sample": False} if name == "DDIMScheduler" else {}
        pipe.scheduler = getattr(diffusers, name)(**NOISE, **off)
        ends.append(solve_with(pipe, unet).samples)
    # latents of variance exploding, which the pipeline scales, and ratios instead of levels
    for end in ends[1:]:
        assert float((end - ends[0]).norm() / ends[0].norm()) < 0.02


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("HeunDiscreteScheduler", NOISE, "cannot be divided"),
        ("EulerAncestralDiscreteScheduler", NOISE, "draws noise"),
        ("DDIMScheduler", {**NOISE, "thresholding": True, "clip_sample": False}, "thresholding=T"),
        ("EDMEulerScheduler", {}, "is not known"),
        (
            "DDIMScheduler",
            {**NOISE, "clip_sample": False, "rescale_betas_zero_snr": True},
            "noise without signal",
        ),
    ],
)
def test_steps_that_are_no_ode_are_refused(
    unet: Any, name: str, options: dict[str, Any], why: str
) -> None:
    pipe = pipeline(unet)
    pipe.scheduler = scheduler = getattr(diffusers, name)(**options)
    with pytest.raises(CapabilityError, match=why):
        solve_pipeline(pipe, lambda: pipe(**ask(unet)))
    assert pipe.scheduler is scheduler


def test_requests_that_do_not_fit_are_refused(unet: Any) -> None:
    pipe = pipeline(unet)
    drawn = iter(range(9))

    def other_noise() -> Any:
        return pipe(**{**ask(unet), "generator": torch.Generator().manual_seed(next(drawn))})

    with pytest.raises(InputError, match="began with other noise"):
        solve_pipeline(pipe, other_noise, substeps=2)
    with pytest.raises(InputError, match="even number"):
        solve_pipeline(pipe, lambda: None, substeps=3)
    with pytest.raises(CapabilityError, match="made 0 of"):
        solve_pipeline(pipe, lambda: None, substeps=2)
    with attach(pipe, SkipPolicy(every=1)), pytest.raises(ConflictError, match="has policies"):
        solve_pipeline(pipe, lambda: pipe(**ask(unet)))
    pipe(**ask(unet))  # the scheduler is as before


@pytest.mark.parametrize("kind", [ShapesFlux, ShapesUNet])
def test_a_fit_leads_there_and_is_refined_through_the_pipeline(kind: type[InPipeline]) -> None:
    model, rows = fresh(kind), list[int]()
    prompts = (model.demo_prompts()[0] * 8)[:8]
    profiler = EndToEndProfiler(
        schedule=SkipPolicy(steps=(0, 1)), target="exact", refine=1, steps_within=2
    )
    network = getattr(model, kind.pipeline_model().network)
    handle = getattr(network, FIRST[kind]).register_forward_pre_hook(
        lambda _, args: rows.append(len(args[0]))
    )
    sampler = model.pipeline_sampler(num_steps=STEPS)
    profile = sampler.calibrate(model, prompts, seed=SEED, profiler=profiler)
    handle.remove()
    # honest: counted where the network runs
    assert float(profile.provenance["full_runs"]) == pytest.approx(
        sum(rows) / (2 * 8 * STEPS), abs=0.05
    )
    assert "forward" not in vars(network)
    table, solution = FittedTable.of(profile), sampler.solve(model, prompts, seed=SEED, substeps=2)
    full = sampler.sample(model, prompts, seed=SEED).samples
    own = model.pipeline_sampler([FittedReuse(profile=profile)], num_steps=STEPS)
    found = own.sample(model, prompts, seed=SEED)
    errors = [float((x - solution.samples).square().mean()) for x in (found.samples, full)]
    assert table.errors["fitted"] == pytest.approx(errors[0], rel=1e-3)
    assert found.traces[0].computed_steps == (0, 1)
