"""Fitted reuse under noise prediction, batched guidance and multistep schedulers, in pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from erta_bench.shapes_image import ShapesFlux, ShapesUNet, load_flux, load_unet
from erta_bench.shapes_image._unet import NOISE
from erta_framework import Profile
from erta_framework.errors import CapabilityError, PolicyError, ProfileMismatchError
from erta_framework.metrics import psnr
from erta_integrations.diffusers import attach
from erta_integrations.diffusers.bundled import pipeline, request, samples_of
from erta_integrations.diffusers.pipeline import capabilities
from erta_integrations.diffusers.pipeline._schedulers import read_schedule
from erta_policies.ertacache import SkipPolicy
from erta_policies.fitted import (
    FittedProfiler,
    FittedReuse,
    FittedSchedule,
    FittedTable,
    FittedVelocity,
)
from erta_policies.fitted._cached_run import RUNS
from erta_policies.fitted._solver_variable import SolverVariable
from erta_policies.forecast import Forecaster

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"  # schedulers of diffusers, NumPy 2
)
STEPS = 10
SCHEDULE = SkipPolicy(steps=(0, 1, 4, 7, 9))
PROFILER = FittedProfiler(schedule=SCHEDULE)


def fit(model: ShapesFlux | ShapesUNet, pipe: Any, count: int = 6, **options: Any) -> Profile:
    prompts = model.demo_prompts()[0][:count]
    seeds = [500 + k for k in range(count)]
    with attach(pipe, [PROFILER]) as run:
        pipe(
            **request(
                model, prompts * len(RUNS), seeds=seeds * len(RUNS), num_steps=STEPS, **options
            )
        )
    return run.profile()


def sampled(model: ShapesFlux | ShapesUNet, pipe: Any, *policies: Any) -> tuple[Tensor, Any]:
    with attach(pipe, policies) as run:
        asked = request(model, model.demo_prompts()[1][:4], seeds=range(4), num_steps=STEPS)
        found = samples_of(model, pipe(**asked))
    return found, run.traces[0]


@pytest.fixture(scope="module")
def unet() -> ShapesUNet:
    return load_unet()


# ------------------------------------------------------------------------ the variable
@pytest.mark.parametrize("spacing", [{}, {"timestep_spacing": "leading", "steps_offset": 0}])
@pytest.mark.parametrize("end", [True, False])
def test_a_step_of_ddim_is_an_euler_step(spacing: dict[str, Any], end: bool) -> None:
    settings = {**NOISE, **spacing, "clip_sample": False, "set_alpha_to_one": end}
    scheduler = diffusers.DDIMScheduler(**settings)
    scheduler.set_timesteps(STEPS)
    sigmas, variable = read_schedule(scheduler).sigmas, SolverVariable("level")
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 3, 4, 4, generator=generator).double() for _ in range(2))
    for index, time in enumerate(scheduler.timesteps):
        start, stop = sigmas[index : index + 2]
        moved = scheduler.step(noise, time, x).prev_sample
        size = variable.node(stop) - variable.node(start)
        said = variable.scale(start) * x + size * noise
        torch.testing.assert_close(moved * variable.scale(stop), said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed", [{"clip_sample": True}, {"prediction_type": "v_prediction"}, {"thresholding": True}]
)
def test_ddim_whose_step_is_another_is_not_taken_for_one(
    unet: ShapesUNet, changed: dict[str, Any]
) -> None:
    settings = {**NOISE, "clip_sample": False, "set_alpha_to_one": True}
    assert capabilities(diffusers.DDIMScheduler(**settings))
    scheduler = diffusers.DDIMScheduler(**{**settings, **changed})
    assert capabilities(scheduler) == frozenset()
    pipe = pipeline(unet)
    pipe.scheduler = scheduler
    with pytest.raises(PolicyError, match="no fixed weighted sum"):
        fit(unet, pipe, 2)


# ------------------------------------------------------------------------- in pipelines
@pytest.mark.parametrize(
    ("load", "scheduler", "gain"),
    [
        (load_unet, "ddim", 6.0),
        (load_unet, "unipc", 1.0),
        (load_unet, "dpmpp", 1.0),
        (load_flux, "flow_euler", 0.5),
    ],
)
def test_a_pipeline_is_nearer_than_under_a_taylor_forecast(
    load: Callable[[], ShapesFlux | ShapesUNet], scheduler: str, gain: float
) -> None:
    model = load()
    pipe = pipeline(model, scheduler)
    profile = fit(model, pipe)
    table = FittedTable.of(profile)
    assert (profile.samples, table.batches, table.kept) == (6, 1, "fitted")
    assert table.settings.trajectory == (1.0 if scheduler in ("ddim", "flow_euler") else 0.3)
    full, _ = sampled(model, pipe)
    taylor, _ = sampled(model, pipe, SCHEDULE, Forecaster())
    fitted, trace = sampled(model, pipe, FittedReuse(profile=profile))
    assert trace.computed_steps == (0, 1, 4, 7, 9)
    assert trace.network_calls == 5 * (2 if load is load_flux else 1)  # guidance in one batch
    assert float((psnr(fitted, full) - psnr(taylor, full)).mean()) > gain


def test_the_guard_computes_in_a_pipeline_and_says_so(unet: ShapesUNet) -> None:
    pipe = pipeline(unet)
    profile = fit(unet, pipe, 2)
    free, trace = sampled(unet, pipe, FittedReuse(profile=profile))
    calm, guarded = sampled(unet, pipe, FittedReuse(profile=profile, guard=True))
    assert torch.equal(free, calm)
    assert guarded.network_calls == trace.network_calls == 5
    strict = [
        FittedSchedule(profile=profile),
        FittedVelocity(profile=profile, guard=True, limit=0.5),
    ]
    _, told = sampled(unet, pipe, *strict)
    reasons = [call for call in told.calls() if "out of range" in call.reason]
    assert reasons
    assert all(call.computed for call in reasons)
    assert told.network_calls == 5 + len(reasons)


# ----------------------------------------------------------------------------- refusals
def test_another_scheduler_is_refused(unet: ShapesUNet) -> None:
    profile = fit(unet, pipeline(unet), 2)
    with pytest.raises(ProfileMismatchError, match="solver"):
        sampled(unet, pipeline(unet, "unipc"), FittedReuse(profile=profile))


def test_a_step_that_adds_noise_is_refused(unet: ShapesUNet) -> None:
    pipe = pipeline(unet)
    prompts = unet.demo_prompts()[0][:1] * len(RUNS)
    asked = request(unet, prompts, seeds=[1] * len(RUNS), num_steps=STEPS)
    with attach(pipe, [PROFILER]), pytest.raises(CapabilityError, match="eta=1 draws"):
        pipe(**asked, eta=1.0)


def test_latents_that_the_network_gets_scaled_are_refused(unet: ShapesUNet) -> None:
    pipe = pipeline(unet)
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**NOISE)
    with pytest.raises(PolicyError, match="no fixed weighted sum"):
        fit(unet, pipe, 2)


def test_ddim_whose_steps_do_not_meet_is_refused(unet: ShapesUNet) -> None:
    pipe, steps = pipeline(unet), 24
    prompts = unet.demo_prompts()[0][:1] * len(RUNS)
    asked = request(unet, prompts, seeds=[1] * len(RUNS), num_steps=steps)
    profiler = FittedProfiler(schedule=SkipPolicy(evenly=8))
    with attach(pipe, [profiler]), pytest.raises(PolicyError, match="divides the training steps"):
        pipe(**asked)


def test_a_grid_on_which_a_step_stands_still_is_refused(unet: ShapesUNet) -> None:
    pipe = pipeline(unet)
    pipe.scheduler = diffusers.HeunDiscreteScheduler(**NOISE)
    with pytest.raises(PolicyError, match="ends where it starts"):
        fit(unet, pipe, 2)
